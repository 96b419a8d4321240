// SPDX-License-Identifier: Apache-2.0
//! Flags and environment as the user wrote them; the only reader of the environment.
