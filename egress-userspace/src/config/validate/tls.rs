// SPDX-License-Identifier: Apache-2.0
//! TLS settings of Gateway servers and DestinationRules (istio `validateServer`,
//! `validateTLSOptions`, `agent.ValidateTLS`; istio-egress.md 4.5 to 4.9 and 6.6).

use super::Findings;
use crate::{
    config::{
        field::FieldPath,
        istio::{
            self, ClientTlsMode, ClientTlsSettings, ServerTlsMode as RawMode, ServerTlsSettings,
        },
    },
    routing::{
        gateway::{ServerTls, ServerTlsMode},
        service::Protocol,
    },
};

/// `Server.tls` against the protocol of its port.
pub(super) fn server(
    raw: &istio::Server,
    protocol: Protocol,
    path: &FieldPath<'_>,
    findings: &mut Findings,
) -> Option<ServerTls> {
    let needs_tls = matches!(protocol, Protocol::Https | Protocol::Tls);
    let Some(tls) = &raw.tls else {
        if needs_tls {
            findings.error(path, "protocol HTTPS and TLS need `tls` settings");
        }
        return None;
    };
    let http = matches!(
        protocol,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb
    );
    if http {
        if has_certificates(tls) || tls.mode != RawMode::Passthrough {
            findings.error(
                path,
                "a plain HTTP server takes only `httpsRedirect` here; use protocol HTTPS",
            );
        }
    } else if !needs_tls {
        findings.error(path, "a plain TCP server takes no `tls`; use protocol TLS");
    } else {
        server_options(tls, path, findings);
    }
    if tls.https_redirect {
        findings.not_in_effect(&path.key("httpsRedirect"), "plain HTTP is not redirected");
    }
    Some(ServerTls {
        mode: match tls.mode {
            RawMode::Passthrough => ServerTlsMode::Passthrough,
            RawMode::Simple => ServerTlsMode::Simple,
            RawMode::Mutual => ServerTlsMode::Mutual,
            RawMode::OptionalMutual => ServerTlsMode::OptionalMutual,
            RawMode::IstioMutual => ServerTlsMode::IstioMutual,
            RawMode::AutoPassthrough => ServerTlsMode::AutoPassthrough,
        },
        https_redirect: tls.https_redirect,
    })
}

fn has_certificates(tls: &ServerTlsSettings) -> bool {
    [
        &tls.server_certificate,
        &tls.private_key,
        &tls.ca_certificates,
        &tls.ca_crl,
        &tls.credential_name,
        &tls.ca_cert_credential_name,
    ]
    .iter()
    .any(|field| !field.is_empty())
        || !tls.credential_names.is_empty()
        || !tls.tls_certificates.is_empty()
}

fn server_options(tls: &ServerTlsSettings, path: &FieldPath<'_>, findings: &mut Findings) {
    if tls.min_protocol_version > tls.max_protocol_version
        && tls.max_protocol_version != istio::TlsProtocol::Auto
    {
        findings.error(
            &path.key("minProtocolVersion"),
            "must not be above maxProtocolVersion",
        );
    }
    let mode = path.key("mode");
    match tls.mode {
        RawMode::Passthrough | RawMode::AutoPassthrough => {
            if has_certificates(tls) {
                findings.warning(path, "certificates have no effect without termination");
            }
            if tls.mode == RawMode::AutoPassthrough {
                findings.not_in_effect(&mode, "connections to this server are closed");
            }
            return;
        }
        RawMode::IstioMutual => {
            if has_certificates(tls) {
                findings.error(
                    path,
                    "mode ISTIO_MUTUAL uses the mesh's own certificates; give none",
                );
            }
        }
        RawMode::Simple | RawMode::Mutual | RawMode::OptionalMutual => {
            terminating(tls, path, findings);
        }
    }
    findings.not_in_effect(&mode, "TLS is not terminated and connections are closed");
}

fn terminating(tls: &ServerTlsSettings, path: &FieldPath<'_>, findings: &mut Findings) {
    let by_name = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    if !tls.credential_name.is_empty() && !tls.credential_names.is_empty() {
        findings.error(
            &path.key("credentialNames"),
            "credentialName and credentialNames exclude each other",
        );
    }
    if by_name {
        return;
    }
    let listed = !tls.tls_certificates.is_empty();
    let single = !tls.server_certificate.is_empty() || !tls.private_key.is_empty();
    if listed && single {
        findings.error(
            &path.key("tlsCertificates"),
            "tlsCertificates and serverCertificate exclude each other",
        );
    }
    if !listed {
        for (name, value) in [
            ("serverCertificate", &tls.server_certificate),
            ("privateKey", &tls.private_key),
        ] {
            if value.is_empty() {
                findings.error(
                    &path.key(name),
                    "terminating TLS needs serverCertificate and privateKey, or credentialName",
                );
            }
        }
    }
    if tls.mode != RawMode::Simple
        && tls.ca_certificates.is_empty()
        && tls.ca_cert_credential_name.is_empty()
    {
        findings.error(
            &path.key("caCertificates"),
            "mode MUTUAL and OPTIONAL_MUTUAL need caCertificates or credentialName",
        );
    }
}

/// `trafficPolicy.tls` of a DestinationRule.
pub(super) fn client(tls: &ClientTlsSettings, path: &FieldPath<'_>, findings: &mut Findings) {
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
        ("credentialName", &tls.credential_name),
    ];
    if tls.insecure_skip_verify == Some(true)
        && (!tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty())
    {
        findings.error(
            &path.key("insecureSkipVerify"),
            "excludes caCertificates and subjectAltNames",
        );
    }
    let verifies = matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)
        && tls.insecure_skip_verify != Some(true);
    if verifies && tls.ca_certificates.is_empty() && tls.credential_name.is_empty() {
        findings.warning(
            path,
            "without caCertificates the server's certificate is checked against the system's \
             authorities (IST0128)",
        );
    }
    match tls.mode {
        ClientTlsMode::Mutual if tls.credential_name.is_empty() => {
            for (name, value) in &files[..2] {
                if value.is_empty() {
                    findings.error(
                        &path.key(name),
                        "mode MUTUAL needs clientCertificate and privateKey, or credentialName",
                    );
                }
            }
        }
        ClientTlsMode::IstioMutual => {
            for (name, value) in files {
                if !value.is_empty() {
                    findings.error(
                        &path.key(name),
                        "mode ISTIO_MUTUAL uses the mesh's own certificates; give none",
                    );
                }
            }
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            let name_and_file = !tls.credential_name.is_empty()
                && files[..3].iter().any(|(_, value)| !value.is_empty());
            if name_and_file {
                findings.error(
                    &path.key("credentialName"),
                    "credentialName and certificate files exclude each other",
                );
            }
        }
        ClientTlsMode::Disable => {}
    }
}
