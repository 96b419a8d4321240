// SPDX-License-Identifier: Apache-2.0
//! The local admin server: readiness, metrics, dumps.
