//! Imports between packages as a graph, read from `cargo metadata`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// `from` imports `to`, in whatever section of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The importing package.
    pub from: String,
    /// The imported package.
    pub to: String,
}

/// Packages of a workspace and the imports among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    /// Names.
    pub packages: Vec<String>,
    /// Imports between two of them.
    pub edges: Vec<Edge>,
}

impl Graph {
    /// Read the output of `cargo metadata --no-deps`.
    pub fn from_metadata(json: &[u8]) -> Option<Self> {
        let metadata: Value = serde_json::from_slice(json).ok()?;
        let entries = metadata.get("packages")?.as_array()?;
        let name = |value: &Value| Some(value.get("name")?.as_str()?.to_owned());
        let packages: Vec<String> = entries.iter().map(name).collect::<Option<_>>()?;
        let mut edges = Vec::new();
        for entry in entries {
            let from = name(entry)?;
            for dependency in entry.get("dependencies")?.as_array()? {
                let to = name(dependency)?;
                if packages.contains(&to) {
                    edges.push(Edge { from: from.clone(), to });
                }
            }
        }
        Some(Self { packages, edges })
    }

    /// Edges that do not lead to a lower floor. A package without floor is as high as can be.
    pub fn not_downward(&self, floors: &[(&str, u8)]) -> Vec<Edge> {
        let floors: HashMap<&str, u8> = floors.iter().copied().collect();
        let floor = |name: &str| floors.get(name).copied().unwrap_or(u8::MAX);
        let wrong = |edge: &&Edge| floor(&edge.to) >= floor(&edge.from);
        self.edges.iter().filter(wrong).cloned().collect()
    }

    /// A circle of imports, if there is one: the packages in order.
    pub fn circle(&self) -> Option<Vec<String>> {
        let mut done = HashSet::new();
        let mut path = Vec::new();
        self.packages.iter().find_map(|package| self.circle_from(package, &mut path, &mut done))
    }

    fn circle_from<'a>(
        &'a self,
        package: &'a str,
        path: &mut Vec<&'a str>,
        done: &mut HashSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(start) = path.iter().position(|step| *step == package) {
            return Some(path[start..].iter().map(|step| (*step).to_owned()).collect());
        }
        if !done.insert(package) {
            return None;
        }
        path.push(package);
        let mut next = self.edges.iter().filter(|edge| edge.from == package);
        let found = next.find_map(|edge| self.circle_from(&edge.to, path, done));
        path.pop();
        found
    }
}

fn graph(edges: &[(&str, &str)]) -> Graph {
    let mut packages: Vec<String> = Vec::new();
    for (from, to) in edges {
        for name in [from, to] {
            if !packages.iter().any(|package| package == name) {
                packages.push((*name).to_owned());
            }
        }
    }
    let edge = |(from, to): &(&str, &str)| Edge { from: (*from).to_owned(), to: (*to).to_owned() };
    Graph { packages, edges: edges.iter().map(edge).collect() }
}

const FLOORS: &[(&str, u8)] = &[("low", 0), ("beside", 0), ("high", 1)];

#[test]
fn floors_downward_edge_is_allowed() {
    assert!(graph(&[("high", "low"), ("high", "beside")]).not_downward(FLOORS).is_empty());
}

#[test]
fn floors_upward_sideways_and_unknown_edges_are_found() {
    let edges = [("low", "high"), ("low", "beside"), ("high", "new")];
    for edge in edges {
        assert_eq!(graph(&[edge]).not_downward(FLOORS).len(), 1, "{edge:?}");
    }
}

#[test]
fn circle_added_edge_is_found() {
    let straight = [("a", "b"), ("b", "c"), ("a", "c")];
    assert_eq!(graph(&straight).circle(), None);
    let mut closed = straight.to_vec();
    closed.push(("c", "b"));
    assert_eq!(graph(&closed).circle(), Some(vec!["b".to_owned(), "c".to_owned()]));
}

#[test]
fn metadata_edges_of_every_kind_are_read() {
    let json = br#"{"packages":[
        {"name":"a","dependencies":[{"name":"b","kind":"dev"},{"name":"serde","kind":null}]},
        {"name":"b","dependencies":[]}]}"#;
    let expected = Graph {
        packages: vec!["a".to_owned(), "b".to_owned()],
        edges: vec![Edge { from: "a".to_owned(), to: "b".to_owned() }],
    };
    assert_eq!(Graph::from_metadata(json), Some(expected));
}
