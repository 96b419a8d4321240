// SPDX-License-Identifier: Apache-2.0
//! Input that is not what it should be: a clear error, in bounded time and memory, and everything
//! beside it applies.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails with the error it met, in helpers as in tests"
)]

use std::{fs, path::PathBuf};

use egress::{
    config::{self, ConfigSettings, Loaded, problem::Severity},
    routing::table::Role,
};

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("egress-bad-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn load(&self) -> Loaded {
        config::load(&ConfigSettings {
            paths: vec![self.0.clone()],
            mesh_config: None,
            default_namespace: "default".into(),
            role: Role::Mesh,
        })
        .unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn virtual_service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: a}}\nspec: {spec}\n"
    )
}

fn good(name: &str) -> String {
    virtual_service(
        name,
        &format!("{{hosts: [{name}.com], http: [{{directResponse: {{status: 200}}}}]}}"),
    )
}

/// A list whose expansion would have 10^9 members.
fn laughs() -> String {
    let mut text = "x0: &x0 [a]\n".to_owned();
    for n in 1..10 {
        let aliases = vec![format!("*x{}", n - 1); 10].join(", ");
        text.push_str(&format!("x{n}: &x{n} [{aliases}]\n"));
    }
    text
}

#[test]
fn each_kind_of_bad_input_has_a_clear_error() {
    let long = "a".repeat(10 << 20);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("aliases", laughs().into(), "repetition limit exceeded"),
        (
            "nesting",
            "[".repeat(20_000).into(),
            "recursion limit exceeded",
        ),
        ("encoding", b"a: \xff\n".to_vec(), "is not UTF-8 text"),
        (
            "nul",
            b"a: b\0c\n".to_vec(),
            "control characters are not allowed",
        ),
        ("tab", b"kind: X\n\tname: y\n".to_vec(), "tab character"),
        (
            "duplicate",
            virtual_service("d", "{hosts: [a.com], hosts: [b.com]}").into(),
            "duplicate entry with key \"hosts\"",
        ),
        (
            "scalar",
            b"just text\n".to_vec(),
            "must be an object with apiVersion",
        ),
        (
            "list",
            b"- 1\n".to_vec(),
            "must be an object with apiVersion",
        ),
        (
            "long",
            virtual_service("l", &format!("{{hosts: ['{long}']}}")).into(),
            "aaaa",
        ),
        (
            "regex",
            virtual_service(
                "r",
                "{hosts: [a.com], http: [{match: [{uri: {regex: '(a{1000}){1000}'}}], \
                 directResponse: {status: 200}}]}",
            )
            .into(),
            "exceeds size limit",
        ),
    ];
    for (name, text, expected) in cases {
        let directory = Directory::new(name);
        fs::write(directory.0.join("bad.yaml"), text).unwrap();
        fs::write(directory.0.join("good.yaml"), good("good")).unwrap();
        let loaded = directory.load();
        let errors: Vec<_> = loaded
            .problems()
            .filter(|p| p.severity == Severity::Error)
            .collect();
        assert!(
            errors.iter().any(|p| p.message.contains(expected)),
            "{name}: {errors:?}"
        );
        for error in errors {
            assert!(
                error.message.len() < 2_000,
                "{name}: a message of any length"
            );
            assert!(
                error.file.ends_with("bad.yaml") && error.line > 0,
                "{error:?}"
            );
        }
        let names: Vec<_> = loaded
            .objects
            .virtual_services
            .iter()
            .map(|vs| vs.origin.name.as_str())
            .collect();
        assert_eq!(names, ["good"], "{name}: what is beside it applies");
    }
}

#[test]
fn odd_but_legal_forms_are_read() {
    let directory = Directory::new("odd");
    let crlf = good("crlf").replace('\n', "\r\n");
    fs::write(directory.0.join("crlf.yaml"), crlf).unwrap();
    let bom = ["\u{feff}", &good("bom")].concat();
    fs::write(directory.0.join("bom.yaml"), bom).unwrap();
    fs::write(
        directory.0.join("empty.yaml"),
        "---\n# nothing\n---\nnull\n",
    )
    .unwrap();
    let anchors = virtual_service(
        "anchors",
        "{hosts: [x.com], http: [{match: [{uri: {prefix: /a}}], \
         directResponse: &d {status: 200}}, {directResponse: *d}]}",
    );
    fs::write(directory.0.join("anchors.yaml"), anchors).unwrap();
    let loaded = directory.load();
    let problems: Vec<_> = loaded.problems().collect();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(loaded.objects.virtual_services.len(), 3);
}

#[test]
fn one_bad_object_among_thousands_is_left_out_alone() {
    let directory = Directory::new("thousands");
    let mut text: String = (0..2_000).map(|n| good(&format!("v{n}"))).collect();
    text.push_str(&virtual_service(
        "bad",
        "{hosts: [bad.com], http: [{rout: []}]}",
    ));
    text.extend((2_000..4_000).map(|n| good(&format!("v{n}"))));
    fs::write(directory.0.join("all.yaml"), text).unwrap();
    let loaded = directory.load();
    assert_eq!(loaded.objects.virtual_services.len(), 4_000);
    let problems: Vec<_> = loaded.problems().collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(
        (problems[0].name.as_str(), problems[0].line),
        ("bad", 2_000 * 5 + 5)
    );
}
