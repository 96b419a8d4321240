// SPDX-License-Identifier: Apache-2.0
//! The commands that end by themselves: validate, explain, status, dump. They print to stdout and
//! say by their result whether what was asked about is good.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
};

use anyhow::{Context, anyhow, bail};

use super::caller;
use crate::{
    cli::{DumpArgs, DumpWhat, ExplainArgs, ExplainProtocol, Output, StatusArgs, ValidateArgs},
    config::{self, ConfigSettings, problem::Severity, report},
    control::{
        client::{self, Dump},
        table,
    },
    explain::{ExplainRequest, ExplainSource, Explainer, render_text},
    kernel,
    routing::table::Role,
};

/// `egress validate`.
pub fn validate(args: &ValidateArgs) -> anyhow::Result<bool> {
    let loaded = config::load(&ConfigSettings {
        paths: args.paths.clone(),
        mesh_config: args.mesh_config.clone(),
        default_namespace: args.default_namespace.clone(),
        role: Role::Mesh,
    })?;
    let text = match args.output {
        Output::Text => report::render_text(&loaded),
        Output::Json => report::render_json(&loaded),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(loaded
        .problems()
        .all(|problem| problem.severity != Severity::Error))
}

/// `egress explain`.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<bool> {
    if args.config.config.is_empty() {
        bail!("no configuration: give at least one --config PATH");
    }
    let loaded = config::load(&ConfigSettings {
        paths: args.config.config.clone(),
        mesh_config: args.config.mesh_config.clone(),
        default_namespace: args.config.default_namespace.clone(),
        role: Role::Mesh,
    })?;
    for problem in loaded.problems() {
        eprintln!("{problem}");
    }
    let explainer = Explainer::new(loaded.objects);
    let mut out = io::BufWriter::new(io::stdout().lock());
    if let Some(path) = &args.batch {
        for line in input(path)?.lines() {
            let line = line.context("reading the batch")?;
            if !line.trim().is_empty() {
                writeln!(out, "{}", explainer.line(&line))?;
            }
        }
    } else {
        let explanation = explainer.explain(&request(args)?)?;
        match args.output {
            Output::Text => out.write_all(render_text(&explanation).as_bytes())?,
            Output::Json => writeln!(out, "{:#}", explanation.json)?,
        }
    }
    out.flush()?;
    Ok(true)
}

fn input(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::BufReader::new(io::stdin())));
    }
    let file =
        fs::File::open(path).with_context(|| format!("reading the batch {}", path.display()))?;
    Ok(Box::new(io::BufReader::new(file)))
}

/// The request that the flags describe.
fn request(args: &ExplainArgs) -> anyhow::Result<ExplainRequest> {
    let mut request = ExplainRequest {
        gateway: (args.gateway != "mesh").then(|| args.gateway.clone()),
        gateway_labels: (!args.gateway_labels.is_empty())
            .then(|| args.gateway_labels.iter().cloned().collect()),
        source: source(args)?,
        port: args.port,
        protocol: args.protocol.map(|protocol| {
            match protocol {
                ExplainProtocol::Http => "http",
                ExplainProtocol::Tls => "tls",
                ExplainProtocol::Tcp => "tcp",
            }
            .to_owned()
        }),
        host: args.host.clone(),
        sni: args.sni.clone(),
        dst_ip: args.dst_ip,
        method: args.method.clone(),
        path: args.path.clone(),
        headers: args.header.iter().cloned().collect(),
        ..ExplainRequest::default()
    };
    let Some(url) = &args.url else {
        if request.host.is_none() && request.sni.is_none() && request.dst_ip.is_none() {
            bail!("nothing to explain: give --url, or --host, --port and --protocol, or --batch");
        }
        return Ok(request);
    };
    let uri: http::Uri = url.parse().with_context(|| format!("--url {url}"))?;
    let authority = uri
        .authority()
        .ok_or_else(|| anyhow!("--url {url}: it names no host"))?;
    match uri.scheme_str() {
        Some("http") => {
            request.protocol = Some("http".to_owned());
            request.host = Some(authority.to_string());
            request.port = Some(authority.port_u16().unwrap_or(80));
            request.path = uri.path_and_query().map(ToString::to_string);
        }
        // The application's TLS is not terminated: only the server name is seen.
        Some("https") => {
            request.protocol = Some("tls".to_owned());
            request.sni = Some(authority.host().to_owned());
            request.port = Some(authority.port_u16().unwrap_or(443));
        }
        _ => bail!("--url {url}: only http:// and https:// can be explained"),
    }
    Ok(request)
}

/// The caller that the flags describe or name.
fn source(args: &ExplainArgs) -> anyhow::Result<Option<ExplainSource>> {
    if let Some(found) = caller::named(args)? {
        return Ok(Some(ExplainSource {
            namespace: found.namespace,
            labels: found.labels,
            service_account: found.service_account,
            name: found.name,
        }));
    }
    let described = args.source_namespace.is_some()
        || !args.source_labels.is_empty()
        || args.source_service_account.is_some();
    Ok(described.then(|| ExplainSource {
        namespace: args.source_namespace.clone().unwrap_or_default(),
        labels: args.source_labels.iter().cloned().collect(),
        service_account: args.source_service_account.clone().unwrap_or_default(),
        name: String::new(),
    }))
}

/// `egress status`.
pub fn status(args: &StatusArgs) -> anyhow::Result<bool> {
    let runtime = super::proxying::control_runtime()?;
    let status = runtime.block_on(client::status(args.admin))?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &status)?;
            writeln!(out)?;
        }
        Output::Text => out.write_all(status.text().as_bytes())?,
    }
    Ok(status.ready)
}

/// `egress dump`.
pub fn dump(args: &DumpArgs) -> anyhow::Result<bool> {
    let what = match args.what {
        DumpWhat::Maps => {
            let maps = kernel::dump_maps(&args.bpffs)?;
            writeln!(io::stdout().lock(), "{maps:#}")?;
            return Ok(true);
        }
        DumpWhat::Config => Dump::Config,
        DumpWhat::Workloads => Dump::Workloads,
        DumpWhat::Dns => Dump::Dns,
        DumpWhat::Connections => Dump::Connections,
    };
    let runtime = super::proxying::control_runtime()?;
    let body = runtime.block_on(client::fetch(args.admin, what.path()))?;
    let mut out = io::stdout().lock();
    let shown = match out.is_terminal() {
        true => table::of(what, &serde_json::from_str(&body)?),
        false => None,
    };
    writeln!(out, "{}", shown.as_deref().unwrap_or(&body).trim_end())?;
    Ok(true)
}
