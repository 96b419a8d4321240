// SPDX-License-Identifier: Apache-2.0
//! Whom `egress explain --source-workload` means: a workload that a running node knows, or that a
//! `--workloads` file names.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::{
    cli::ExplainArgs,
    control::client::{self, Dump},
    kernel::Workloads,
    workload::Workload,
};

/// One entry of `/workloads`.
#[derive(Debug, Clone, Default, Deserialize)]
struct Known {
    #[serde(flatten)]
    workload: Workload,
    #[serde(default)]
    pod: KnownPod,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct KnownPod {
    #[serde(default)]
    cgroups: Vec<PathBuf>,
}

/// The caller that `--source-workload` names; `None` without that flag.
///
/// # Errors
/// When the node or the file cannot be read, or knows no such workload, or several.
pub fn named(args: &ExplainArgs) -> anyhow::Result<Option<Workload>> {
    let Some(wanted) = &args.source_workload else {
        return Ok(None);
    };
    let known = match &args.workloads {
        Some(path) => of_file(path, wanted)?,
        None => of_node(args.admin)?,
    };
    let place = match &args.workloads {
        Some(path) => path.display().to_string(),
        None => format!("the node at {}", args.admin),
    };
    let found = choose(wanted, known).with_context(|| format!("looking it up in {place}"));
    found
        .with_context(|| format!("--source-workload {wanted}"))
        .map(Some)
}

fn of_node(admin: SocketAddr) -> anyhow::Result<Vec<Known>> {
    let runtime = super::proxying::control_runtime()?;
    let body = runtime.block_on(client::fetch(admin, Dump::Workloads.path()))?;
    serde_json::from_str(&body)
        .with_context(|| format!("the admin server on {admin} answered no list of workloads"))
}

/// A file has patterns instead of cgroups: a cgroup stands for the workload it would be given.
fn of_file(path: &Path, wanted: &str) -> anyhow::Result<Vec<Known>> {
    let file = Workloads::from_yaml_file(path)?;
    let mut known: Vec<_> = file
        .all()
        .iter()
        .map(|workload| Known {
            workload: Workload::clone(workload),
            pod: KnownPod::default(),
        })
        .collect();
    known.extend(file.at_path(Path::new(wanted)).map(|workload| Known {
        workload: Workload::clone(workload),
        pod: KnownPod {
            cgroups: vec![PathBuf::from(wanted)],
        },
    }));
    Ok(known)
}

/// The one workload that is meant by `NAME`, `NAMESPACE/NAME` or `/CGROUP`.
fn choose(wanted: &str, known: Vec<Known>) -> anyhow::Result<Workload> {
    let meant = |known: &&Known| match wanted.split_once('/') {
        Some(("", _)) => known.pod.cgroups.iter().any(|of| of.starts_with(wanted)),
        Some((namespace, name)) => {
            known.workload.namespace == namespace && known.workload.name == name
        }
        None => known.workload.name == wanted,
    };
    let mut found: Vec<&Workload> = Vec::new();
    for known in known.iter().filter(meant) {
        if !found.contains(&&known.workload) {
            found.push(&known.workload);
        }
    }
    match found[..] {
        [one] => {
            ensure!(
                *one != Workload::default(),
                "nothing names the workload of this pod"
            );
            Ok(one.clone())
        }
        [] => {
            let mut names: Vec<_> = known.iter().map(|known| shown(&known.workload)).collect();
            names.sort();
            names.dedup();
            bail!("no such workload; known are: {}", names.join(", "))
        }
        _ => {
            let names: Vec<_> = found.iter().map(|workload| shown(workload)).collect();
            bail!(
                "several workloads are called so: {}; say NAMESPACE/NAME, or the pod's cgroup",
                names.join(", ")
            )
        }
    }
}

fn shown(workload: &Workload) -> String {
    let name = workload.qualified_name();
    name.unwrap_or_else(|| "(a pod without a name)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Known> {
        serde_json::from_str(
            r#"[
                {"namespace": "a", "name": "sleep", "labels": {"app": "sleep"},
                 "service_account": "sa", "pod": {"index": 1, "cgroups": ["/pods/a/x", "/pods/a/y"]}},
                {"namespace": "a", "name": "sleep", "labels": {"app": "sleep"},
                 "service_account": "sa", "pod": {"index": 2, "cgroups": ["/pods/b"]}},
                {"namespace": "b", "name": "web", "labels": {}, "service_account": ""},
                {"namespace": "c", "name": "web", "labels": {}, "service_account": ""},
                {"namespace": "", "name": "", "labels": {}, "service_account": "",
                 "pod": {"cgroups": ["/pods/nameless"]}}
            ]"#,
        )
        .unwrap()
    }

    #[test]
    fn workloads_are_found_by_name_namespace_and_cgroup() {
        for wanted in ["sleep", "a/sleep", "/pods/a", "/pods/a/y", "/pods/b"] {
            let found = choose(wanted, known()).unwrap();
            assert_eq!(
                (found.namespace.as_str(), found.name.as_str()),
                ("a", "sleep")
            );
            assert_eq!(found.labels["app"], "sleep", "{wanted}");
            assert_eq!(found.service_account, "sa", "{wanted}");
        }
        assert_eq!(choose("c/web", known()).unwrap().namespace, "c");
    }

    #[test]
    fn what_is_unknown_or_unclear_is_an_error_that_says_what_would_do() {
        for (wanted, expected) in [
            (
                "web",
                "several workloads are called so: b/web, c/web; say NAMESPACE/NAME",
            ),
            (
                "b/sleep",
                "known are: (a pod without a name), a/sleep, b/web, c/web",
            ),
            ("/pods/nameless", "nothing names the workload of this pod"),
            ("/pods/bc", "no such workload"),
        ] {
            let error = choose(wanted, known()).unwrap_err().to_string();
            assert!(error.contains(expected), "{wanted}: {error}");
        }
    }

    #[test]
    fn a_file_is_searched_by_name_and_by_the_cgroups_that_its_patterns_match() {
        let file = std::env::temp_dir().join(format!("egress-caller-{}", std::process::id()));
        let text = "- {cgroup: /pods/x-*, namespace: a, name: x, labels: {app: x}}\n\
                    - {cgroup: /pods/**, namespace: b, name: rest}\n";
        std::fs::write(&file, text).unwrap();
        for (wanted, expected) in [
            ("x", "a"),
            ("b/rest", "b"),
            ("/pods/x-1/c", "a"),
            ("/pods/y", "b"),
        ] {
            let known = of_file(&file, wanted).unwrap();
            assert_eq!(
                choose(wanted, known).unwrap().namespace,
                expected,
                "{wanted}"
            );
        }
        assert!(choose("/system", of_file(&file, "/system").unwrap()).is_err());
        std::fs::remove_file(&file).unwrap();
    }
}
