// SPDX-License-Identifier: Apache-2.0
//! Builds the kernel object and hands its path to `kernel::loader`, which embeds it.
//!
//! Without the toolchain the build still succeeds, with an empty object and a warning: the
//! gateway, `validate` and `explain` need no kernel programs, and `egress node` says what to do.

#[path = "../xtask/src/build_ebpf.rs"]
mod build_ebpf;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = root.parent().context("the crate lies in the workspace")?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    for path in ["egress-ebpf", "egress-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let embedded = out_dir.join("egress-ebpf.o");
    match build_ebpf::Toolchain::find() {
        Ok(toolchain) => {
            let object = toolchain.build(root, &target_dir(&out_dir)?)?;
            fs::copy(&object, &embedded)
                .with_context(|| format!("copying {}", object.display()))?;
        }
        Err(missing) => {
            println!(
                "cargo:warning=built without the kernel object ({missing}): `egress node` will \
                 refuse to start; run `cargo xtask setup` and build again"
            );
            // A path that does not exist makes cargo run this script at the next build.
            println!(
                "cargo:rerun-if-changed={}",
                out_dir.join("toolchain-missing").display()
            );
            fs::write(&embedded, []).context("writing the empty object")?;
        }
    }
    println!(
        "cargo:rustc-env=EGRESS_KERNEL_OBJECT={}",
        embedded.display()
    );
    Ok(())
}

/// `target/ebpf`, shared by all profiles: `OUT_DIR` is `target/PROFILE/build/PACKAGE/out`.
fn target_dir(out_dir: &Path) -> Result<PathBuf> {
    let target = out_dir
        .ancestors()
        .nth(4)
        .context("OUT_DIR lies four levels below the target directory")?;
    Ok(target.join("ebpf"))
}
