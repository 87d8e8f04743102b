//! The data structures that are dropped.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, LinkedList};

use serde_json::{Map, Value};

use super::random::Random;

/// Each with how many blocks it has, at least, for so many elements.
pub(crate) struct Structure {
    pub(crate) name: &'static str,
    pub(crate) build: fn(usize) -> Box<dyn Any + Send>,
    pub(crate) n_elements: usize,
    pub(crate) blocks_per_element: f64,
    /// One of the eight that the bar on the mean is for.
    pub(crate) in_mean: bool,
}

const fn structure(
    name: &'static str,
    build: fn(usize) -> Box<dyn Any + Send>,
    n_elements: usize,
    blocks_per_element: f64,
) -> Structure {
    Structure { name, build, n_elements, blocks_per_element, in_mean: true }
}

const M: usize = 1_000_000;

pub(crate) const STRUCTURES: [Structure; 10] = [
    structure("HashMap<usize, Vec<usize>>", map_of_vecs, M, 1.0),
    structure("Vec<String>, shuffled", strings, 2 * M, 1.0),
    structure("Vec<Box<[u8; 256]>>, shuffled", boxes, M, 1.0),
    structure("Vec<Vec<u8>>, 4 KiB, shuffled", pages, M / 10, 1.0),
    // A node of a tree has room for 11 entries and is two thirds full on average.
    structure("BTreeMap<u64, String>", tree_map, M, 1.14),
    structure("HashMap<String, String>", map_of_strings, M, 2.0),
    structure("LinkedList<u64>", list, M, 1.0),
    structure("binary tree of boxes", tree, M, 1.0),
    Structure { in_mean: false, ..structure("serde_json::Value", json, 250_000, 6.0) },
    Structure { in_mean: false, ..structure("tree of directories", directories, M, 1.1) },
];

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

fn shuffled<T: Send + 'static>(mut items: Vec<T>) -> Box<dyn Any + Send> {
    Random(SEED).shuffle(&mut items);
    Box::new(items)
}

fn map_of_vecs(n: usize) -> Box<dyn Any + Send> {
    Box::new((0..n).map(|i| (i, vec![i; 3])).collect::<HashMap<_, _>>())
}

fn strings(n: usize) -> Box<dyn Any + Send> {
    shuffled((0..n).map(|i| format!("the string number {i}")).collect())
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
