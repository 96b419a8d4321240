// SPDX-License-Identifier: Apache-2.0
//! Builds the kernel object: finds a compiler that has the source of its standard library, finds
//! a bpf-linker for it, and runs a cargo of its own.
//!
//! Used twice: by `cargo xtask build-ebpf` and, through a `#[path]` module, by egress-userspace's
//! build script, so that both build the same way. Installs nothing; that is `setup`.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Target triple of the kernel object.
const TARGET: &str = "bpfel-unknown-none";
/// Debian's compiler that has its standard library's source, see [`compilers`].
const DEBIAN_BIN: &str = "/usr/bin";
/// Environment that an outer cargo or rustup sets for the host build and that must not reach ours.
const FOREIGN_ENVIRONMENT: [&str; 12] = [
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "MAKEFLAGS",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Everything needed to build the kernel object.
#[derive(Debug)]
pub struct Toolchain {
    /// The cargo that belongs to `rustc`.
    pub cargo: PathBuf,
    /// A compiler whose sysroot holds `library/`.
    pub rustc: PathBuf,
    /// A bpf-linker whose LLVM is at least the compiler's.
    pub bpf_linker: PathBuf,
}

/// What of the toolchain is absent; `setup` installs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// No compiler with the source of its standard library.
    Compiler,
    /// No bpf-linker for a compiler of this LLVM major version.
    BpfLinker {
        /// LLVM major version of the compiler.
        llvm: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => write!(f, "no Rust compiler that has its rust-src"),
            Self::BpfLinker { llvm } => write!(f, "no bpf-linker for LLVM {llvm}"),
        }
    }
}

/// A compiler that has the source of its standard library.
#[derive(Debug)]
pub struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    /// LLVM major version.
    pub llvm: u32,
}

impl Toolchain {
    /// Finds all parts, or says which one is missing.
    pub fn find() -> Result<Self, Missing> {
        let compiler = Compiler::find().ok_or(Missing::Compiler)?;
        let bpf_linker = bpf_linker(compiler.llvm).ok_or(Missing::BpfLinker {
            llvm: compiler.llvm,
        })?;
        Ok(Self {
            cargo: compiler.cargo,
            rustc: compiler.rustc,
            bpf_linker,
        })
    }

    /// The command that builds the object of the workspace at `root` into `target_dir`.
    pub fn command(&self, root: &Path, target_dir: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        for name in FOREIGN_ENVIRONMENT {
            command.env_remove(name);
        }
        let flags = [
            format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
            "-Cdebuginfo=2".to_owned(),
            format!("-Clinker={}", self.bpf_linker.display()),
            "-Clink-arg=--btf".to_owned(),
        ];
        command
            .current_dir(root)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .args(["build", "--package", "egress-ebpf", "--release", "--locked"])
            .args(["--target", TARGET, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(target_dir);
        command
    }

    /// Builds the object and returns its path. Takes no time when nothing has changed.
    pub fn build(&self, root: &Path, target_dir: &Path) -> Result<PathBuf> {
        let mut command = self.command(root, target_dir);
        let status = command
            .status()
            .with_context(|| format!("running {}", self.cargo.display()))?;
        if !status.success() {
            bail!("building the kernel object failed ({status}): {command:?}");
        }
        Ok(target_dir.join(TARGET).join("release").join("egress-ebpf"))
    }
}

impl Compiler {
    /// rustup's nightly first, then Debian's.
    pub fn find() -> Option<Self> {
        compilers()
            .into_iter()
            .find_map(|(cargo, rustc)| Self::probe(cargo, rustc))
    }

    fn probe(cargo: PathBuf, rustc: PathBuf) -> Option<Self> {
        if !cargo.is_file() || !rustc.is_file() {
            return None;
        }
        let sysroot = output(&rustc, &["--print", "sysroot"])?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        if !source.is_dir() {
            return None;
        }
        let version = output(&rustc, &["-vV"])?;
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .and_then(major)?;
        Some(Self { cargo, rustc, llvm })
    }
}

/// Candidates as (cargo, rustc), best first. Toolchain directories are read directly: asking
/// rustup could start a download.
fn compilers() -> Vec<(PathBuf, PathBuf)> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| home.map(|home| home.join(".rustup")));
    let mut found: Vec<PathBuf> = rustup
        .and_then(|rustup| rustup.join("toolchains").read_dir().ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("nightly"))
        })
        .map(|path| path.join("bin"))
        .collect();
    found.sort();
    found.push(PathBuf::from(DEBIAN_BIN));
    found
        .into_iter()
        .map(|bin| (bin.join("cargo"), bin.join("rustc")))
        .collect()
}

/// The first bpf-linker on PATH or in cargo's bin directory that can read the bitcode of a
/// compiler with this LLVM. One that is linked statically does not tell its version and is taken.
fn bpf_linker(llvm: u32) -> Option<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| home.map(|home| home.join(".cargo")));
    let mut directories: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    directories.extend(cargo_home.map(|home| home.join("bin")));
    directories
        .into_iter()
        .map(|directory| directory.join("bpf-linker"))
        .filter(|path| path.is_file())
        .filter(|path| output(path, &["--version"]).is_some())
        .find(|path| linked_llvm(path).is_none_or(|linked| linked >= llvm))
}

/// LLVM major version of a dynamically linked program, from the name of the library.
fn linked_llvm(program: &Path) -> Option<u32> {
    let libraries = output(Path::new("ldd"), &[program.as_os_str().to_owned()])?;
    let name = libraries
        .split_whitespace()
        .find(|word| word.starts_with("libLLVM"))?;
    // libLLVM.so.22.1 or libLLVM-19.so
    name.split(|c: char| !c.is_ascii_digit())
        .find(|part| !part.is_empty())
        .and_then(major)
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.trim().parse().ok()
}

/// Standard output of a command that succeeded.
fn output(program: &Path, arguments: &[impl Into<OsString> + Clone]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments.iter().cloned().map(Into::<OsString>::into))
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
