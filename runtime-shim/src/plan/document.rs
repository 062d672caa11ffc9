//! The tables of `docs/oci.md` that are made from the code.

use std::fs;
use std::path::Path;

/// Whoever sets this variable has the tables written into the document.
const WRITE: &str = "BULKHEAD_WRITE_DOCS";

/// Fails unless the document has `table` between the marks of `name`.
#[track_caller]
pub(super) fn assert_current(name: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/oci.md");
    let text = fs::read_to_string(&path).expect("docs/oci.md");
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = text.split_once(&begin).expect("the begin mark");
    let (was, after) = rest.split_once(&end).expect("the end mark");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, format!("{before}{begin}{table}{end}{after}")).expect("docs/oci.md");
        return;
    }
    let place = was.lines().zip(table.lines()).find(|(was, is)| was != is);
    assert!(was == table, "docs/oci.md is old ({WRITE}=1 writes it): {place:#?}");
}
