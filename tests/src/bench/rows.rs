//! Results: a table with ratios, and the JSON form that every bench writes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Samples by name, in the order of their first.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
}

impl Row {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> f64 {
        self.sorted().get(self.samples.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Rows {
    /// Add a sample.
    pub fn add(&mut self, name: &str, unit: &'static str, sample: f64) {
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row { name: name.to_owned(), unit, samples: vec![sample] }),
        }
    }

    /// The table, with the ratio of each row to the one that `peer` names.
    pub fn print(&self, peer: impl Fn(&str) -> Option<String>) {
        println!(
            "{:<22} {:>10} {:>10} {:>10}  {:<14} ratio",
            "name", "median", "min", "max", "unit"
        );
        for row in &self.rows {
            let sorted = row.sorted();
            let peer = peer(&row.name);
            let same = |other: &&Row| {
                peer.as_ref().is_some_and(|peer| other.name == *peer) && other.unit == row.unit
            };
            let ratio = self.rows.iter().find(same);
            let ratio = ratio.map_or(String::new(), |peer| {
                format!("{:.2} of {}", row.median() / peer.median(), peer.name)
            });
            let bound = |sample: Option<&f64>| sample.copied().unwrap_or(f64::NAN);
            println!(
                "{:<22} {:>10.1} {:>10.1} {:>10.1}  {:<14} {ratio}",
                row.name,
                row.median(),
                bound(sorted.first()),
                bound(sorted.last()),
                row.unit,
            );
        }
    }

    /// `{"rows":[{"name","unit","median","min","max","rounds"}]}`.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let sorted = row.sorted();
                json!({
                    "name": row.name,
                    "unit": row.unit,
                    "median": row.median(),
                    "min": sorted.first(),
                    "max": sorted.last(),
                    "rounds": row.samples.len(),
                })
            })
            .collect();
        json!({ "rows": rows })
    }

    /// Write the JSON form to `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.json()).context("cannot write JSON")?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_median_and_spread() {
        let mut rows = Rows::default();
        for sample in [3.0, 1.0, 2.0] {
            rows.add("a", "Minstr", sample);
        }
        let expected = json!({"rows": [{
            "name": "a", "unit": "Minstr", "median": 2.0, "min": 1.0, "max": 3.0, "rounds": 3
        }]});
        assert_eq!(rows.json(), expected);
    }
}
