//! All figures with what they were measured on, as JSON and back.

use std::env;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::process::Command;
use std::ptr;

use serde_json::{Map, Value, json};

use super::sections::{ALL, SECTIONS};
use super::support::Scale;
use super::support::children::Results;
use super::support::contender::Contender;
use super::support::machine;
use super::support::section::Section;

pub(crate) struct Record {
    pub(crate) scale: Scale,
    pub(crate) parts: Vec<Part>,
}

/// A section that was measured.
pub(crate) struct Part {
    pub(crate) section: &'static Section,
    pub(crate) conditions: Conditions,
    pub(crate) results: Results,
}

/// Machine, versions and settings, each with its name.
pub(crate) type Conditions = Vec<(String, String)>;

impl Record {
    pub(crate) fn part(&self, section: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.section.name == section)
    }

    /// Replaces what is there of a section; cases that were not measured again stay, if the
    /// contenders are the same.
    pub(crate) fn put(&mut self, mut part: Part, sections: &[&Section]) {
        let same = |there: &Part| there.section.name == part.section.name;
        if let Some(at) = self.parts.iter().position(same) {
            let earlier = self.parts.remove(at);
            if earlier.results.contenders == part.results.contenders {
                part.results.absorb(earlier.results);
                let order = (part.section.cases)(self.scale);
                let place = |case: &String| order.iter().position(|it| it.name == *case);
                part.results.cases.sort_by_key(place);
            }
        }
        self.parts.push(part);
        let place = |part: &Part| sections.iter().position(|it| it.name == part.section.name);
        self.parts.sort_by_key(place);
    }

    pub(crate) fn to_json(&self) -> String {
        let parts: Vec<Value> = self.parts.iter().map(part_to_json).collect();
        let all = json!({
            "units": "nanoseconds, bytes; an array holds the figure of each repetition",
            "scale": self.scale.name(),
            "sections": parts,
        });
        format!("{all:#}\n")
    }
}

fn part_to_json(part: &Part) -> Value {
    let results = &part.results;
    let conditions = part.conditions.iter().map(|(name, fact)| json!([name, fact]));
    let case = |case: &String| {
        let contender = |contender: &Contender| {
            let figures: Map<String, Value> = (results.of_each_run(case, *contender))
                .map(|(key, values)| (key.to_owned(), json!(values)))
                .collect();
            json!({ "name": contender.name(), "figures": figures })
        };
        let contenders: Vec<Value> = results.contenders.iter().map(contender).collect();
        json!({ "name": case, "contenders": contenders })
    };
    json!({
        "name": part.section.name,
        "about": part.section.about,
        "conditions": conditions.collect::<Vec<_>>(),
        "cases": results.cases.iter().map(case).collect::<Vec<_>>(),
    })
}

pub(crate) fn parse(text: &str) -> Result<Record, String> {
    let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let scale = all["scale"].as_str().and_then(Scale::from_name).ok_or("it names no scale")?;
    let parts = array(&all["sections"]).iter().filter_map(part_from_json).collect();
    Ok(Record { scale, parts })
}

/// A section or a contender that there is no more is left out.
fn part_from_json(part: &Value) -> Option<Part> {
    let name = part["name"].as_str()?;
    let section = SECTIONS.into_iter().find(|section| section.name == name)?;
    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
    let conditions = array(&part["conditions"]).iter().filter_map(pair).collect();
    let mut results = Results::new(Vec::new());
    for case in array(&part["cases"]) {
        let name = case["name"].as_str()?;
        results.cases.push(name.to_owned());
        for of in array(&case["contenders"]) {
            let Some(contender) = Contender::from_name(of["name"].as_str()?.as_bytes()) else {
                continue;
            };
            if !results.contenders.contains(&contender) {
                results.contenders.push(contender);
            }
            for (key, values) in of["figures"].as_object()? {
                for value in array(values).iter().filter_map(Value::as_f64) {
                    results.push(name, contender, key.clone(), value);
                }
            }
        }
    }
    Some(Part { section, conditions, results })
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What this run is made under.
pub(crate) fn conditions() -> Conditions {
    let facts = machine::facts().into_iter().map(|(name, fact)| (name.to_owned(), fact));
    let mut conditions: Conditions = facts.collect();
    let mut add = |name: &str, fact: String| conditions.push((name.to_owned(), fact));
    // SAFETY: it only returns a constant.
    let mimalloc = unsafe { libmimalloc_sys::mi_version() };
    add("mimalloc", format!("{mimalloc} (its own number: 3.3.2 is 30302)"));
    add("jemalloc", jemalloc_version().unwrap_or("?".to_owned()));
    add("C library", c_library());
    add("compiler", output_of("rustc", &["--version"]));
    add("commit", output_of("git", &["describe", "--always", "--dirty"]));
    add("date", output_of("date", &["-u", "+%F"]));
    let of_contender = |contender: &Contender| {
        let (variable, value) = contender.environment()?;
        Some(format!("{}: {variable}={value}", contender.name()))
    };
    let settings: Vec<String> = ALL.iter().filter_map(of_contender).chain(inherited()).collect();
    add("settings", settings.join("; "));
    conditions
}

/// Variables that all contenders inherit and that change what an allocator does.
fn inherited() -> Vec<String> {
    let prefixes = ["DEFERFREE", "MIMALLOC_", "_RJEM_MALLOC", "MALLOC_", "GLIBC_TUNABLES"];
    let is_setting = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let variables = env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str()?;
        is_setting(name).then(|| format!("all: {name}={}", value.to_string_lossy()))
    });
    variables.collect()
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok();
    let text = output.filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or("?".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(target_env = "gnu")]
fn c_library() -> String {
    // SAFETY: it returns a constant string.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    format!("glibc {}", version.to_string_lossy())
}

#[cfg(not(target_env = "gnu"))]
fn c_library() -> String {
    "not glibc".to_owned()
}

fn jemalloc_version() -> Option<String> {
    unsafe extern "C" {
        // jemalloc's `mallctl`, under the prefix that `tikv-jemalloc-sys` gives it.
        fn _rjem_mallctl(
            name: *const c_char,
            old: *mut c_void,
            old_len: *mut usize,
            new: *mut c_void,
            new_len: usize,
        ) -> c_int;
    }
    let mut version: *const c_char = ptr::null();
    let mut len = size_of_val(&version);
    let old = (&raw mut version).cast();
    // SAFETY: "version" writes one pointer to a constant string into `old`, which has room for it.
    let error = unsafe { _rjem_mallctl(c"version".as_ptr(), old, &mut len, ptr::null_mut(), 0) };
    if error != 0 || version.is_null() {
        return None;
    }
    // SAFETY: the pointer is to a constant string that ends in NUL.
    Some(unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned())
}
