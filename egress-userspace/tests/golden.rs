// SPDX-License-Identifier: Apache-2.0
//! What users see of their objects, compared with files beside the input: `egress validate` as text
//! and JSON, and the objects of `/config_dump`. To accept a change, run with `EGRESS_ACCEPT=1` and
//! read the difference before committing it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails with the error it met, in helpers as in tests"
)]

use std::{env, fs, path::Path};

use egress::{
    config::{self, ConfigSettings, Loaded, report},
    control::dump,
    routing::table::Role,
};

fn load(file: &Path) -> Loaded {
    config::load(&ConfigSettings {
        paths: vec![file.to_owned()],
        mesh_config: None,
        default_namespace: "default".into(),
        role: Role::Mesh,
    })
    .unwrap()
}

fn compare(expected: &Path, found: &str) {
    if env::var_os("EGRESS_ACCEPT").is_some() {
        fs::write(expected, found).unwrap();
    }
    let text = fs::read_to_string(expected).unwrap_or_default();
    let first = text
        .lines()
        .zip(found.lines())
        .enumerate()
        .find(|(_, (a, b))| a != b);
    assert!(
        text == found,
        "{} differs, first at line {:?}; accept with EGRESS_ACCEPT=1",
        expected.display(),
        first.map(|(at, (a, b))| format!("{}:\n  expected {a}\n  found    {b}", at + 1))
    );
}

#[test]
fn messages_and_dumps_are_as_recorded() {
    let inputs = ["bad", "warnings", "objects"];
    for name in inputs {
        let file = Path::new("tests/golden").join(name).with_extension("yaml");
        let loaded = load(&file);
        compare(&file.with_extension("txt"), &report::render_text(&loaded));
        compare(&file.with_extension("json"), &report::render_json(&loaded));
        let objects = serde_json::to_string_pretty(&dump::objects(&loaded.objects)).unwrap();
        compare(&file.with_extension("dump.json"), &(objects + "\n"));
    }
}
