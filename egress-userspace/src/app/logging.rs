// SPDX-License-Identifier: Apache-2.0
//! The program's own log: to stderr, as text or JSON, with a filter that the admin server may
//! change. The access log is elsewhere.

use std::{io::IsTerminal, sync::Arc};

use anyhow::Context;
use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::cli::{LogArgs, LogFormat};

/// Replaces the filter; the error is one line for the operator.
pub type SetFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Installs the subscriber of the process.
///
/// # Errors
/// When the filter does not parse.
pub fn install(args: &LogArgs) -> anyhow::Result<SetFilter> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log {}", args.log))?;
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => registry
            .with(layer.with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    }
    .context("installing the log")?;
    Ok(Arc::new(move |text| {
        let filter = EnvFilter::try_new(text).map_err(|e| e.to_string())?;
        handle.reload(filter).map_err(|e| e.to_string())
    }))
}
