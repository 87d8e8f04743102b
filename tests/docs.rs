//! What the documentation names is there: programs, tests and sections of benches in the commands that it prints, files,
//! the headings that it links to, the functions that `docs/internals.md` sends its reader to, the tests in the table of
//! faults.
//!
//! Seen to fail, each: with a section, an example, a script, a file, a link, a heading, a function and a test renamed in the
//! text.

use std::fs;
use std::path::{Path, PathBuf};

/// What is said about code in a text that is Markdown, or in the comments of a Rust file.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = read(&path);
        let text =
            if path.extension().is_some_and(|it| it == "rs") { comments(&text) } else { text };
        Self { path, text }
    }

    /// Lines between fences, and what stands between backticks elsewhere, in this order.
    fn code(&self) -> Vec<String> {
        let (mut code, mut prose, mut is_fenced) = (Vec::new(), String::new(), false);
        for line in self.text.lines().chain([""]) {
            let is_fence = line.trim_start().starts_with("```");
            if is_fence || line.is_empty() {
                code.extend(self.spans(&prose));
                prose.clear();
            }
            match (is_fence, is_fenced) {
                (true, _) => is_fenced = !is_fenced,
                (false, true) => code.push(command(line).to_owned()),
                (false, false) => prose += &format!("{line} "),
            }
        }
        code
    }

    fn spans(&self, prose: &str) -> Vec<String> {
        let pieces: Vec<&str> = prose.split('`').collect();
        assert!(pieces.len() % 2 == 1, "{}: a backtick too few or too many: {prose}", self.name());
        pieces.into_iter().skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// The cells of its tables' rows.
    fn rows(&self) -> impl Iterator<Item = Vec<&str>> {
        let rows = self.text.lines().filter(|line| line.starts_with("| "));
        rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
    }

    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }
}

/// Without what is said of it, on the same line.
fn command(line: &str) -> &str {
    line.split('#').next().unwrap().trim_start().split("  ").next().unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn comments(text: &str) -> String {
    let comment = |line: &str| line.trim_start().strip_prefix("//").map(str::to_owned);
    let lines = text.lines().map(|line| comment(line).unwrap_or_default());
    lines.map(|line| line.trim_start_matches(['/', '!']).trim_start().to_owned() + "\n").collect()
}

/// All files below a directory, or the file itself, whose name ends so.
fn files(path: &Path, extension: &str) -> Vec<PathBuf> {
    if !path.is_dir() {
        let has_it = path.extension().is_some_and(|it| it == extension);
        return has_it.then(|| path.to_owned()).into_iter().collect();
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|entry| files(&entry, extension)).collect()
}

fn markdown() -> impl Iterator<Item = Page> {
    let paths = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md", "docs"];
    paths.into_iter().flat_map(|path| files(&root().join(path), "md")).map(Page::read)
}

fn is_declared(name: &str, text: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod"];
    kinds.iter().any(|kind| {
        let declaration = format!("{kind} {name}");
        let ends = text.match_indices(&declaration).map(|(at, found)| &text[at + found.len()..]);
        ends.into_iter()
            .any(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'))
    })
}

// Commands.

/// The benches are no part of the package.
fn has_benches() -> bool {
    root().join("benches").exists()
}

/// A section of a bench: its name, and the text of the file it is in.
struct Section(String, String);

/// `None` if there is no such bench. There is one without sections, whose parts are words in its files.
fn sections(bench: &str) -> Option<Vec<Section>> {
    let benches = root().join("benches");
    if !read(&benches.join("Cargo.toml")).contains(&format!("\nname = \"{bench}\"\n")) {
        return None;
    }
    let mut paths = files(&benches.join(bench), "rs");
    // Those that it has from other benches.
    for path in paths.clone() {
        let text = read(&path);
        let others =
            text.lines().filter_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"));
        let others = others.map(|other| path.parent().unwrap().join(other));
        paths.extend(others.filter(|other| !other.ends_with("mod.rs")));
    }
    let texts = paths.iter().map(|path| read(path));
    let sections = texts.flat_map(|text| {
        let named = |lines: [&str; 2]| {
            let name = lines[0].trim().strip_prefix("name: \"")?.strip_suffix("\",")?;
            lines[1].trim().starts_with("about:").then(|| name.to_owned())
        };
        let lines: Vec<&str> = text.lines().collect();
        let names: Vec<String> =
            lines.windows(2).filter_map(|two| named([two[0], two[1]])).collect();
        names.into_iter().map(move |name| Section(name, text.clone())).collect::<Vec<_>>()
    });
    Some(sections.collect())
}

/// As benches take it: `section`, `section/case` and `/case`, each a part of a name.
fn is_section(filter: &str, bench: &str) -> bool {
    let Some(sections) = sections(bench) else { return false };
    if sections.is_empty() {
        let files = files(&root().join("benches").join(bench), "rs");
        return files.iter().any(|file| read(file).contains(&format!("\"{filter}\"")));
    }
    let (section, case) = filter.split_once('/').unwrap_or((filter, ""));
    let structures = read(&root().join("benches/support/structures.rs"));
    sections.iter().any(|Section(name, text)| {
        name.contains(section) && (text.contains(case) || structures.contains(case))
    })
}

/// What comes after `--` and is no option or an option's value.
fn filters<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let is_value = |i: usize| i > 0 && ["--save", "--rounds"].contains(&words[i - 1]);
    (0..words.len())
        .filter(|i| !words[*i].starts_with('-') && !is_value(*i))
        .map(|i| words[i])
        .collect()
}

#[test]
fn commands_name_what_there_is() {
    if !has_benches() {
        eprintln!("left out: it takes the whole repository");
        return;
    }
    let sources = ["benches", "examples", "fuzz/fuzz_targets", "src", "tests"];
    let sources = sources.into_iter().flat_map(|path| files(&root().join(path), "rs"));
    let (mut n_commands, mut n_sections) = (0, 0);
    for page in sources.map(Page::read).chain(markdown()) {
        // A section alone is about the bench that was named last.
        let mut bench = String::new();
        let mut check = |filters: &[&str], bench: &str, code: &str| {
            for filter in filters {
                assert!(
                    is_section(filter, bench),
                    "{}: {bench} has no section {filter}: {code}",
                    page.name()
                );
                n_sections += 1;
            }
        };
        for code in page.code() {
            let words: Vec<&str> = code.split_whitespace().collect();
            let (before, after) = match words.iter().position(|word| *word == "--") {
                Some(at) => (&words[..at], &words[at + 1..]),
                None => (&words[..], &[][..]),
            };
            for two in before.windows(2) {
                let is_in = |folder| root().join(folder).join(two[1]).with_extension("rs").exists();
                let is_there = match two[0] {
                    "--bench" => sections(two[1]).is_some(),
                    "--example" => is_in("examples"),
                    "--test" => is_in("tests"),
                    _ => continue,
                };
                assert!(is_there, "{}: there is no {}: {code}", page.name(), two[1]);
                n_commands += 1;
                if two[0] == "--bench" {
                    bench = two[1].to_owned();
                }
            }
            if before.is_empty() || before.contains(&"--bench") {
                check(&filters(after), &bench, &code);
            } else if sections(before[0]).is_some() {
                // `bench section`, as tables have it.
                check(&filters(&before[1..]), before[0], &code);
                check(&filters(after), before[0], &code);
            }
            let script = before.iter().find(|word| !word.contains('='));
            if let Some(path) = script.filter(|it| it.ends_with("/run") || it.ends_with(".sh")) {
                assert!(root().join(path).exists(), "{}: there is no {path}", page.name());
            }
        }
        // A table of what comes after `--`.
        let mut is_after = false;
        for row in page.rows() {
            let last = row.last().unwrap();
            if is_after && last.starts_with('`') {
                check(&[last.trim_matches('`')], "large_free", last);
            }
            is_after |= last.starts_with("command after");
        }
    }
    // So many that a change of form cannot have hidden them.
    assert!(n_commands > 50 && n_sections > 30, "{n_commands} commands, {n_sections} sections");
}

// Links.

/// As GitHub and rustdoc make it of a heading.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    words.chars().filter(|it| it.is_alphanumeric() || "-_".contains(*it)).collect()
}

#[test]
fn links_lead_to_files() {
    let mut n_links = 0;
    for page in markdown().filter(|page| !page.path.ends_with("figures/links.md")) {
        let in_text = page.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let below =
            page.text.lines().filter_map(|line| Some(line.strip_prefix('[')?.split_once("]: ")?.1));
        for link in in_text.chain(below).filter(|link| !link.starts_with("http")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = if path.is_empty() {
                page.path.clone()
            } else {
                page.path.parent().unwrap().join(path)
            };
            assert!(file.exists(), "{}: a dead link: {link}", page.name());
            let text = read(&file);
            let is_heading = |line: &str| line.starts_with('#') && anchor(line) == heading;
            let is_there = heading.is_empty() || text.lines().any(is_heading);
            assert!(is_there, "{}: no such heading: {link}", page.name());
            n_links += 1;
        }
    }
    assert!(n_links > 10, "{n_links} links");
}

// Where things are.

#[test]
fn what_is_said_to_be_in_a_file_is_there() {
    let mut n_names = 0;
    for page in markdown() {
        let is_internals = page.path.ends_with("internals.md");
        let mut check = |name: &str, paths: &[PathBuf]| {
            let files = paths.iter().flat_map(|path| files(path, "rs"));
            let is_there = files.into_iter().any(|path| is_declared(name, &read(&path)));
            assert!(is_there, "{}: no {name} in {paths:?}", page.name());
            n_names += 1;
        };
        // Paths, and `NAME` in `src/…`.
        let folders = ["src/", "tests/", "examples/", "docs/", "benches/", "fuzz/", ".ci/"];
        for two in page.code().windows(2) {
            let folder = folders.iter().find(|folder| two[1].starts_with(**folder));
            let is_here = |folder: &&&str| has_benches() || root().join(folder).exists();
            let Some(folder) = folder.filter(|_| !two[1].contains(' ')).filter(is_here) else {
                continue;
            };
            let path = root().join(&two[1]);
            assert!(path.exists(), "{}: there is no {}", page.name(), two[1]);
            let is_constant = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
            if *folder == "src/" && two[0].bytes().all(is_constant) {
                check(&two[0], &[path]);
            }
        }
        // Files or modules, each followed by what is in it.
        for row in page.rows().filter(|_| is_internals) {
            let mut paths = vec![];
            for (column, cell) in row.iter().enumerate() {
                // A module or a sentence.
                if column == 0 && !cell.starts_with('`') {
                    continue;
                }
                for span in page.spans(cell) {
                    let path = root().join("src").join(&span);
                    let there =
                        [path.with_extension("rs"), path].into_iter().filter(|path| path.exists());
                    if column == 0 || span.contains(['.', '/']) {
                        paths = there.collect();
                        assert!(!paths.is_empty(), "{}: there is no src/{span}", page.name());
                    } else {
                        check(&span, &paths);
                    }
                }
            }
        }
    }
    assert!(n_names > 30, "{n_names} names");
}

#[test]
fn tests_in_the_table_of_faults_exist() {
    let page = Page::read(root().join("tests/README.md"));
    let mut n_tests = 0;
    for row in page.rows().filter(|row| row.len() == 4) {
        let mut file = String::new();
        for part in row[2].split("; ") {
            let (name, tests) = part.split_once(": ").unwrap_or((&file, part));
            let name = name.trim_end_matches('*').to_owned();
            let path = |below: &str| root().join(below).join(&name).with_extension("rs");
            let there =
                [path("tests"), path("tests/cases")].into_iter().filter(|path| path.exists());
            let text: String = there.map(|path| read(&path)).collect();
            // Models and unit tests are named by what they are about.
            if text.is_empty() || !(part.contains(": ") || part.starts_with('`')) {
                continue;
            }
            for test in page.spans(tests) {
                let is_there =
                    is_declared(&test, &text) || text.contains(&format!("(\"{test}\", "));
                assert!(is_there, "tests/README.md: no {test} in {name}");
                n_tests += 1;
            }
            file = name;
        }
    }
    assert!(n_tests > 150, "{n_tests} tests");
}
