//! The pictures, drawn from the figures alone: a run draws them, and so does `--render`.

mod latency;
mod price;
mod rss;
mod shapes;
mod style;

use std::fs;
use std::path::Path;

use crate::bench::record::Record;

type Picture = fn(&Record, &Path) -> Result<(), Error>;
type Error = Box<dyn std::error::Error>;

/// One whose section was not measured is not drawn.
const PICTURES: [(&str, &str, Picture); 4] = [
    ("price", "price.svg", price::draw),
    ("idle", "rss.svg", rss::draw),
    ("request", "request.svg", latency::draw),
    ("shapes", "shapes.svg", shapes::draw),
];

pub(crate) fn draw(record: &Record, directory: &Path) -> Result<(), String> {
    for (section, file, picture) in PICTURES {
        if record.part(section).is_none() {
            continue;
        }
        let path = directory.join(file);
        let drawn = fs::create_dir_all(directory).map_err(Error::from);
        drawn
            .and_then(|()| picture(record, &path))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
