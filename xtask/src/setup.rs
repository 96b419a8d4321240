// SPDX-License-Identifier: Apache-2.0
//! `setup`: installs what building the kernel object and running the tests need.
//!
//! A C compiler is not among it: without one (`cc`, which rustup asks for) this program could not
//! have been linked.
//!
//! Installs by apt when it may (root on Debian), else names the commands and fails. Looks at files
//! only when nothing is missing, so every other command can call it.

use std::{
    env,
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    build_ebpf::{Compiler, Missing, Toolchain},
    execute,
};

/// Debian's compiler with its standard library's source.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Programs that the tests and the demonstration call: (a file that shows it is there, package).
const PROGRAMS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("bpftool", "bpftool"),
    ("runc", "runc"),
    ("/bin/busybox", "busybox-static"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];

/// Makes sure that everything is there.
pub fn run() -> Result<()> {
    let mut packages = missing_packages(&PROGRAMS);
    let missing = Toolchain::find().err();
    match missing {
        None if packages.is_empty() => return Ok(()),
        None => return install(&packages, None),
        Some(Missing::Compiler) => {
            packages.extend(COMPILER_PACKAGES.map(str::to_owned));
            install(&packages, None)?;
        }
        Some(Missing::BpfLinker { .. }) => {}
    }
    // The compiler is there by now; what its linker needs follows from its LLVM.
    let compiler = Compiler::find().ok_or_else(|| {
        anyhow!(
            "{}: is this Debian 12 with its security updates?",
            Missing::Compiler
        )
    })?;
    if let Err(Missing::BpfLinker { llvm }) = Toolchain::find() {
        let mut packages = packages_not_installed(&packages);
        packages.extend([format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]);
        install(&packages, Some(llvm))?;
    }
    Toolchain::find().map(drop).map_err(|missing| {
        anyhow!(
            "{missing} after installing (compiler with LLVM {}); is cargo's bin directory on \
             PATH?",
            compiler.llvm
        )
    })
}

/// Makes sure that programs are there which only some command needs: (file, package).
pub fn programs(programs: &[(&str, &str)]) -> Result<()> {
    let packages = missing_packages(programs);
    if packages.is_empty() {
        return Ok(());
    }
    install(&packages, None)
}

fn missing_packages(programs: &[(&str, &str)]) -> Vec<String> {
    programs
        .iter()
        .filter(|(file, _)| !is_present(file))
        .map(|(_, package)| (*package).to_owned())
        .collect()
}

/// Installs packages, then bpf-linker for an LLVM version when asked to.
fn install(packages: &[String], bpf_linker: Option<u32>) -> Result<()> {
    let mut commands = Vec::new();
    if !packages.is_empty() {
        let mut update = Command::new("apt-get");
        update.arg("update");
        let mut install = Command::new("apt-get");
        install
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages);
        commands.extend([update, install]);
    }
    if let Some(llvm) = bpf_linker {
        let mut linker = Command::new("cargo");
        linker
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
            .args(["install", "bpf-linker", "--locked", "--force"])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{llvm}"));
        commands.push(linker);
    }
    if !is_root()? || !is_present("apt-get") {
        let mut text = String::new();
        for command in &commands {
            writeln!(text, "    {}", crate::shown(command))?;
        }
        bail!(
            "the build needs packages that only root can install by apt; as root, run\n{text}or, \
             with rustup online: rustup toolchain install nightly --component rust-src && cargo \
             install bpf-linker"
        );
    }
    commands.iter_mut().try_for_each(execute)
}

/// Those of `packages` whose program is still absent.
fn packages_not_installed(packages: &[String]) -> Vec<String> {
    PROGRAMS
        .iter()
        .filter(|(file, package)| packages.iter().any(|one| one == package) && !is_present(file))
        .map(|(_, package)| (*package).to_owned())
        .collect()
}

/// Whether a program is on PATH or in an sbin directory, or a file given by its path exists.
fn is_present(file: &str) -> bool {
    if file.starts_with('/') {
        return Path::new(file).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|directory| directory.join(file).is_file())
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc")?;
    Ok(status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        == Some("0"))
}
