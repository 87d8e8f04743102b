//! A page of the crate's documentation has no files beside it, so its pictures are in it: `docs/figures/links.md` has them
//! as links. `UPDATE=1 cargo test --test pictures` writes it anew from `docs/figures`.
//!
//! Seen to fail: with a character of a picture changed, and with a picture added.

use std::fmt::Write;
use std::{env, fs};

#[test]
fn links_have_the_pictures_in_them() {
    let figures = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/figures");
    let mut links: Vec<String> = fs::read_dir(figures)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "svg"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            format!("[{name}]: data:image/svg+xml,{}\n", encode(&fs::read(&path).unwrap()))
        })
        .collect();
    links.sort();
    let file = format!("{figures}/links.md");
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, links.concat()).unwrap();
    }
    // Not `assert_eq`, which would show all of it.
    assert!(
        fs::read_to_string(&file).unwrap() == links.concat(),
        "{file} is not what is in the pictures: UPDATE=1 cargo test --test pictures"
    );
}

/// What neither Markdown nor an address gives a meaning to stays.
fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, &byte| {
        if byte.is_ascii_alphanumeric() || b".,:/=-".contains(&byte) {
            text.push(byte.into());
        } else {
            write!(text, "%{byte:02X}").unwrap();
        }
        text
    })
}
