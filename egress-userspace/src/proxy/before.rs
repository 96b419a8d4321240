// SPDX-License-Identifier: Apache-2.0
//! What a rule does before its action, whatever that is: faults and CORS.

use ::http::{HeaderMap, Response, request::Parts};
use bytes::Bytes;

use super::{
    access_log::{ResponseFlag, ResponseFlags},
    cors::{self, Cors},
    error::DataError,
    headers::random,
};
use crate::routing::{decision::Before, virtual_service::Fault};

/// Faults, then CORS, in Istio's order of filters. A response: the answer to a preflight. `cors` gets
/// the fields of the answer that the client will see.
///
/// # Errors
/// When a fault says so.
pub async fn run(
    before: &Before,
    parts: &Parts,
    flags: &mut ResponseFlags,
    cors: &mut HeaderMap,
) -> Result<Option<Response<Bytes>>, DataError> {
    if let Some(fault) = &before.fault {
        inject(fault, flags).await?;
    }
    let Some(policy) = &before.cors else {
        return Ok(None);
    };
    match cors::apply(policy, &parts.method, &parts.headers) {
        Cors::Pass => Ok(None),
        Cors::Allowed(fields) => {
            *cors = fields;
            Ok(None)
        }
        Cors::Preflight(fields) => {
            *cors = fields;
            Ok(Some(Response::new(Bytes::new())))
        }
    }
}

async fn inject(fault: &Fault, flags: &mut ResponseFlags) -> Result<(), DataError> {
    let hit = || (random() >> 32) as u32;
    if let Some((delay, share)) = fault.delay
        && share.includes(hit())
    {
        flags.insert(ResponseFlag::DelayInjected);
        tokio::time::sleep(delay).await;
    }
    match fault.abort {
        Some((abort, share)) if share.includes(hit()) => Err(DataError::Fault { abort }),
        _ => Ok(()),
    }
}
