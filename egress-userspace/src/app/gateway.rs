// SPDX-License-Identifier: Apache-2.0
//! `egress gateway`: configuration, first addresses, proxy threads; no kernel half.

use std::sync::Arc;

use super::{
    logging::SetFilter,
    proxying::{Foundation, control_runtime},
};
use crate::{
    cli::GatewayArgs,
    proxy::{Downstream, Proxy, ProxySettings, proxy_protocol::Trusted, worker::Listen},
    routing::table::Role,
    settings,
};

/// Runs until it is told to stop and everything has ended.
pub fn run(args: &GatewayArgs, set_filter: SetFilter) -> anyhow::Result<()> {
    settings::require_config(&args.proxy)?;
    let settings = ProxySettings {
        listen: Listen::ServerPorts {
            bind: settings::gateway_bind(args),
            map: settings::port_map(args)?,
        },
        drain_time: args.proxy.drain_time,
        proxy_protocol_to: Arc::default(),
    };
    control_runtime()?.block_on(serve(args, settings, set_filter))
}

async fn serve(
    args: &GatewayArgs,
    settings: ProxySettings,
    set_filter: SetFilter,
) -> anyhow::Result<()> {
    let role = Role::Gateway {
        namespace: args.namespace.clone(),
        labels: args.labels.iter().cloned().collect(),
        only: None,
    };
    let foundation = Foundation::start(&args.proxy, role).await?;
    foundation.first_answers().await;
    let recorders = (0..settings::workers(&args.proxy))
        .map(|_| foundation.access_log.recorder())
        .collect();
    let feeds = foundation.feeds();
    let proxy = Proxy::start(
        &settings,
        &feeds,
        &Downstream::Gateway(Trusted::new(&args.trust_proxy)),
        recorders,
        &foundation.stop(),
    )?;
    let admin = foundation
        .admin(&args.proxy, "gateway", set_filter, |state| {
            state.connections = proxy.connections();
        })
        .await?;
    if foundation
        .published
        .borrow()
        .table
        .gateway_ports()
        .is_empty()
    {
        tracing::warn!(
            labels = ?args.labels,
            "no Gateway selects these labels: nothing is listened on until one does"
        );
    }
    foundation.ready("gateway");
    follow(&foundation).await;
    foundation.finish(proxy, admin).await;
    Ok(())
}

/// Brings every new configuration into force until the drain.
async fn follow(foundation: &Foundation) {
    let mut candidates = foundation.candidates.clone();
    candidates.mark_unchanged();
    loop {
        tokio::select! {
            () = foundation.shutdown.drain.cancelled() => return,
            () = foundation.shutdown.reopen.notified() => foundation.access_log.reopen(),
            Ok(()) = candidates.changed() => {
                let next = candidates.borrow_and_update().clone();
                foundation.publish(&next);
            }
        }
    }
}
