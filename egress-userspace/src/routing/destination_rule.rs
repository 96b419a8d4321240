// SPDX-License-Identifier: Apache-2.0
//! DestinationRule as valid values, as far as it is in effect: subsets, the HTTP version towards
//! the upstream, the connect timeout. Which rules apply to a destination (istio
//! `pilot/pkg/model/push_context.go`), and what they come to at its port and subset.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    host::{HostMap, HostPattern},
    service::{ExportTo, Origin},
};

/// A DestinationRule.
#[derive(Debug, Clone)]
pub struct DestinationRule {
    /// Where it came from.
    pub origin: Arc<Origin>,
    /// The hosts it is for, qualified.
    pub host: HostPattern,
    /// Visibility.
    pub export_to: ExportTo,
    /// trafficPolicy.
    pub policy: Option<Policy>,
    /// subsets.
    pub subsets: Vec<Subset>,
}

/// DestinationRule.subsets[].
#[derive(Debug, Clone)]
pub struct Subset {
    /// Unique in the rule.
    pub name: String,
    /// Labels that its endpoints have.
    pub labels: BTreeMap<String, String>,
    /// trafficPolicy.
    pub policy: Option<Policy>,
}

/// TrafficPolicy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// What is not said by port.
    pub settings: Settings,
    /// portLevelSettings: they stand alone, nothing of `settings` is added (trap 8).
    pub ports: Vec<(u16, Settings)>,
}

/// What one level of a policy says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// connectionPool.
    pub pool: Option<PoolSettings>,
    /// tls with a mode other than DISABLE, which is not carried out yet.
    pub tls: Option<bool>,
}

/// ConnectionPoolSettings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolSettings {
    /// tcp.connectTimeout.
    pub connect_timeout: Option<Duration>,
    /// http.h2UpgradePolicy.
    pub http2: Http2Upgrade,
    /// http.useClientProtocol.
    pub as_client: bool,
}

/// HTTPSettings.H2UpgradePolicy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Http2Upgrade {
    /// As meshConfig.h2UpgradePolicy says.
    #[default]
    Default,
    /// HTTP/1.1 stays.
    DoNotUpgrade,
    /// HTTP/2 with prior knowledge.
    Upgrade,
}

/// The rules of a snapshot by host. Lists are oldest first.
#[derive(Debug, Default)]
pub struct DestinationRules {
    by_host: HostMap<Vec<Arc<DestinationRule>>>,
    root_namespace: String,
}

/// What applies to one host for one client: the oldest rule and those that add subsets to it.
#[derive(Debug, Default, Clone)]
pub struct Applied {
    rules: Vec<Arc<DestinationRule>>,
}

impl DestinationRules {
    /// Indexes the rules.
    pub fn new(rules: &[Arc<DestinationRule>], root_namespace: &str) -> Self {
        let mut by_host = HostMap::<Vec<_>>::default();
        for rule in rules {
            by_host.entry(&rule.host).push(rule.clone());
        }
        Self {
            by_host,
            root_namespace: root_namespace.to_owned(),
        }
    }

    /// What applies to a host of a service of `service_namespace` for a client: rules of the
    /// client's own namespace, else those of the service's, else the root namespace's; in each the
    /// most specific host.
    pub fn select(&self, host: &str, service_namespace: &str, client: &str) -> Applied {
        let in_namespace = |namespace: &str, own: bool| {
            let of_namespace = |rule: &&Arc<DestinationRule>| rule.origin.namespace == namespace;
            // The most specific host decides; whether the client may see its rules comes after.
            let rules = self
                .by_host
                .matching(host)
                .find(|rules| rules.iter().any(|rule| of_namespace(&rule)))?;
            let mut visible = rules
                .iter()
                .filter(of_namespace)
                .filter(|rule| own || rule.export_to.covers(client));
            let first = visible.next()?;
            let mut applied = vec![first.clone()];
            // Rules for the same host and the same audience are one rule in several objects.
            applied.extend(visible.filter(|r| r.export_to == first.export_to).cloned());
            Some(applied)
        };
        let rules = (client != self.root_namespace && !client.is_empty())
            .then(|| in_namespace(client, true))
            .flatten()
            .or_else(|| in_namespace(service_namespace, false))
            .or_else(|| in_namespace(&self.root_namespace, client == self.root_namespace));
        Applied {
            rules: rules.unwrap_or_default(),
        }
    }

    /// Namespaces whose clients may see other rules for a host than everybody does.
    pub fn audiences(&self, host: &str) -> BTreeSet<&str> {
        let mut namespaces = BTreeSet::new();
        for rule in self.by_host.matching(host).flatten() {
            namespaces.insert(rule.origin.namespace.as_str());
            if let ExportTo::Namespaces(names) = &rule.export_to {
                namespaces.extend(names.iter().map(String::as_str));
            }
        }
        namespaces
    }
}

impl PartialEq for Applied {
    fn eq(&self, other: &Self) -> bool {
        self.rules.len() == other.rules.len()
            && self
                .rules
                .iter()
                .zip(&other.rules)
                .all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Applied {
    /// The object that decides, for `explain`.
    pub fn origin(&self) -> Option<&Arc<Origin>> {
        self.rules.first().map(|rule| &rule.origin)
    }

    /// The subset of a name: the oldest rule's that has it.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        let mut subsets = self.rules.iter().flat_map(|rule| &rule.subsets);
        subsets.find(|subset| subset.name == name)
    }

    /// What applies at a port: the rule's policy, field by field replaced by the subset's.
    pub fn settings(&self, port: u16, subset: Option<&Subset>) -> Settings {
        let at_port = |policy: &Policy| {
            let of_port = policy.ports.iter().find(|(number, _)| *number == port);
            of_port.map_or_else(|| policy.settings.clone(), |(_, settings)| settings.clone())
        };
        let mut policies = self.rules.iter().filter_map(|rule| rule.policy.as_ref());
        let mut settings = policies.next().map(at_port).unwrap_or_default();
        if let Some(of_subset) = subset
            .and_then(|subset| subset.policy.as_ref())
            .map(at_port)
        {
            settings.pool = of_subset.pool.or(settings.pool);
            settings.tls = of_subset.tls.or(settings.tls);
        }
        settings
    }
}
