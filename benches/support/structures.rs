//! The data structures that are dropped.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet, LinkedList};
use std::hint::black_box;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::children::{Case, Report};
use super::random::Random;
use super::{MIB, Scale};

/// Each with how many blocks it has, at least, for so many elements.
pub(crate) struct Structure {
    pub(crate) name: &'static str,
    pub(crate) build: fn(usize) -> Box<dyn Any + Send>,
    pub(crate) n_elements: usize,
    pub(crate) blocks_per_element: f64,
    /// What so many elements take, in MiB.
    pub(crate) mib: usize,
    /// One of the eight that the bench `compare` is about.
    pub(crate) in_compare: bool,
    /// The drop finds its blocks in no cache: they lie here and there, and it does not touch them
    /// before it frees them.
    pub(crate) is_cold: bool,
}

impl Structure {
    /// A case with the usual number of elements, which needs memory for so many structures.
    pub(crate) fn case(
        &'static self,
        n_structures: usize,
        scale: Scale,
        run: impl Fn(usize, &mut Report) + 'static,
    ) -> Case {
        let n = self.n_elements / scale.pick(1, 1, 100);
        let needs_bytes = self.mib * n_structures * MIB / scale.pick(1, 1, 20);
        Case::new(self.name, needs_bytes, move |report| run(n, report))
    }
}

const fn structure(
    name: &'static str,
    build: fn(usize) -> Box<dyn Any + Send>,
    n_elements: usize,
    blocks_per_element: f64,
    mib: usize,
) -> Structure {
    Structure { name, build, n_elements, blocks_per_element, mib, in_compare: true, is_cold: false }
}

const fn cold(structure: Structure) -> Structure {
    Structure { is_cold: true, ..structure }
}

const M: usize = 1_000_000;

pub(crate) const STRUCTURES: [Structure; 13] = [
    cold(structure("HashMap<usize, Vec<usize>>", map_of_vecs, M, 1.0, 135)),
    cold(structure("Vec<String>, shuffled", strings, 2 * M, 1.0, 145)),
    cold(structure("Vec<Box<[u8; 256]>>, shuffled", boxes, M, 1.0, 259)),
    structure("Vec<Vec<u8>>, 4 KiB, shuffled", pages, M / 10, 1.0, 401),
    // A node of a tree has room for 11 entries and is two thirds full on average.
    cold(structure("BTreeMap<u64, String>", tree_map, M, 1.14, 67)),
    structure("HashMap<String, String>", map_of_strings, M, 2.0, 199),
    structure("LinkedList<u64>", list, M, 1.0, 37),
    structure("binary tree of boxes", tree, M, 1.0, 37),
    Structure { in_compare: false, ..structure("serde_json::Value", json, 250_000, 6.0, 227) },
    Structure { in_compare: false, ..structure("tree of directories", directories, M, 1.1, 99) },
    Structure {
        in_compare: false,
        ..structure("Vec<Rc<str>>, shuffled", shared_strings, M, 1.0, 69)
    },
    Structure {
        in_compare: false,
        ..cold(structure("Vec<Vec<Vec<u32>>>", nested, M / 2, 1.1, 67))
    },
    Structure { in_compare: false, ..structure("HashSet<String>", set, M, 1.0, 119) },
];

/// What the code was not written against: held against the bars on each shape, and in no mean.
pub(crate) const OTHERS: [Structure; 5] = [
    Structure {
        in_compare: false,
        ..structure("Vec<Vec<u8>>, 8 B to 8 KiB", sizes, M / 5, 1.0, 291)
    },
    Structure {
        in_compare: false,
        ..structure("Vec<Vec<u8>>, 16 to 256 KiB", middling, 2000, 1.0, 231)
    },
    // A third of the values is two blocks.
    Structure { in_compare: false, ..structure("HashMap<u64, mixed>", mixed, M / 2, 1.3, 141) },
    // Gaps in all pages, made at once or one by one.
    Structure {
        in_compare: false,
        ..structure("Vec<String>, a fifth gone", thinned, 2 * M, 0.8, 145)
    },
    Structure { in_compare: false, ..structure("Vec<String>, worn", worn, 2 * M, 0.8, 145) },
];

pub(crate) fn all() -> impl Iterator<Item = &'static Structure> {
    STRUCTURES.iter().chain(&OTHERS)
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

fn shuffled<T: Send + 'static>(mut items: Vec<T>) -> Box<dyn Any + Send> {
    Random(SEED).shuffle(&mut items);
    Box::new(items)
}

fn map_of_vecs(n: usize) -> Box<dyn Any + Send> {
    Box::new((0..n).map(|i| (i, vec![i; 3])).collect::<HashMap<_, _>>())
}

fn numbered(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("the string number {i}")).collect()
}

fn strings(n: usize) -> Box<dyn Any + Send> {
    shuffled(numbered(n))
}

fn thinned(n: usize) -> Box<dyn Any + Send> {
    let mut strings = numbered(n);
    let mut random = Random(SEED);
    random.shuffle(&mut strings);
    strings.retain(|_| random.next() % 5 != 0);
    Box::new(strings)
}

/// What is left of a collection that shrinks while the program does other things.
fn worn(n: usize) -> Box<dyn Any + Send> {
    let mut strings = numbered(n);
    let mut random = Random(SEED);
    random.shuffle(&mut strings);
    strings.retain(|string| {
        let stays = random.next() % 5 != 0;
        if !stays {
            black_box(format!("{string} is gone"));
        }
        stays
    });
    Box::new(strings)
}

fn boxes(n: usize) -> Box<dyn Any + Send> {
    shuffled((0..n).map(|i| Box::new([i as u8; 256])).collect())
}

fn pages(n: usize) -> Box<dyn Any + Send> {
    shuffled((0..n).map(|i| vec![i as u8; 4096]).collect())
}

fn tree_map(n: usize) -> Box<dyn Any + Send> {
    let mut random = Random(SEED);
    Box::new((0..n).map(|i| (random.next(), i.to_string())).collect::<Insert<_, _>>().0)
}

/// `BTreeMap`'s own `collect` sorts first and fills its nodes in order.
struct Insert<K, V>(BTreeMap<K, V>);

impl<K: Ord, V> FromIterator<(K, V)> for Insert<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        let mut map = BTreeMap::new();
        for (key, value) in items {
            map.insert(key, value);
        }
        Insert(map)
    }
}

fn map_of_strings(n: usize) -> Box<dyn Any + Send> {
    let entry = |i| (format!("the key number {i}"), format!("its value, which is {i}"));
    Box::new((0..n).map(entry).collect::<HashMap<_, _>>())
}

fn list(n: usize) -> Box<dyn Any + Send> {
    Box::new((0..n as u64).collect::<LinkedList<_>>())
}

struct Node {
    _key: u64,
    _left: Option<Box<Node>>,
    _right: Option<Box<Node>>,
}

/// Balanced, its nodes allocated from the root down.
fn tree(n: usize) -> Box<dyn Any + Send> {
    fn grow(keys: std::ops::Range<u64>) -> Option<Box<Node>> {
        if keys.is_empty() {
            return None;
        }
        let key = keys.start + (keys.end - keys.start) / 2;
        let mut node = Box::new(Node { _key: key, _left: None, _right: None });
        node._left = grow(keys.start..key);
        node._right = grow(key + 1..keys.end);
        Some(node)
    }
    Box::new(grow(0..n as u64))
}

/// What a service keeps of a parsed document: some 100 MB in 250 000 objects.
fn json(n: usize) -> Box<dyn Any + Send> {
    let object = |i: usize| {
        let mut fields = Map::new();
        fields.insert("id".into(), Value::from(i));
        fields.insert("name".into(), Value::from(format!("the name of user {i}")));
        let tags = (0..3).map(|k| Value::from(i % 7 == k)).collect::<Vec<_>>();
        fields.insert("tags".into(), Value::Array(tags));
        Value::Object(fields)
    };
    Box::new(Value::Array((0..n).map(object).collect()))
}

/// References that one thread holds all of, so that they may go to another together.
struct SharedStrings(#[allow(dead_code, reason = "to be dropped")] Vec<Rc<str>>);

// SAFETY: no reference to the strings is anywhere else.
unsafe impl Send for SharedStrings {}

fn shared_strings(n: usize) -> Box<dyn Any + Send> {
    let mut strings: Vec<Rc<str>> =
        (0..n).map(|i| format!("the string number {i}").into()).collect();
    Random(SEED).shuffle(&mut strings);
    Box::new(SharedStrings(strings))
}

/// Rows of ten cells, each of some numbers.
fn nested(n: usize) -> Box<dyn Any + Send> {
    let cell = |i: usize| vec![i as u32; 4 + i % 13];
    Box::new(
        (0..n / 10).map(|row| (0..10).map(|i| cell(row + i)).collect()).collect::<Vec<Vec<_>>>(),
    )
}

fn set(n: usize) -> Box<dyn Any + Send> {
    Box::new((0..n).map(|i| format!("the element number {i}")).collect::<HashSet<_>>())
}

struct Entry {
    _name: String,
    _entries: Vec<Entry>,
}

/// Sixteen entries in each directory; files have none.
fn directories(n: usize) -> Box<dyn Any + Send> {
    fn entry(name: usize, n_below: usize) -> Entry {
        let mut entries = Vec::new();
        let mut left = n_below;
        for k in 0..16 {
            let share = left / (16 - k);
            if share > 0 {
                entries.push(entry(name * 16 + k, share - 1));
            }
            left -= share;
        }
        Entry { _name: format!("entry-{name}"), _entries: entries }
    }
    Box::new(entry(1, n - 1))
}

/// Vectors of a length between the two, short ones more often, every byte written.
fn vectors(n: usize, shortest: usize, longest: usize) -> Box<dyn Any + Send> {
    let mut random = Random(SEED);
    let mut vector = |i: usize| vec![i as u8; random.size(shortest, longest)];
    shuffled((0..n).map(&mut vector).collect())
}

fn sizes(n: usize) -> Box<dyn Any + Send> {
    vectors(n, 8, 8192)
}

/// Large for small blocks, and below the threshold of large ones.
fn middling(n: usize) -> Box<dyn Any + Send> {
    vectors(n, 16 * 1024, 255 * 1024)
}

enum Mixed {
    _Text(String),
    _Numbers(Vec<u64>),
    _Record(Box<(u64, String)>),
}

fn mixed(n: usize) -> Box<dyn Any + Send> {
    let mut random = Random(SEED);
    let mut entry = || {
        let key = random.next();
        let value = match key % 3 {
            0 => Mixed::_Text("text ".repeat(1 + key as usize % 40)),
            1 => Mixed::_Numbers(vec![key; 1 + key as usize % 60]),
            _ => Mixed::_Record(Box::new((key, key.to_string()))),
        };
        (random.next(), value)
    };
    Box::new((0..n).map(|_| entry()).collect::<HashMap<_, _>>())
}
