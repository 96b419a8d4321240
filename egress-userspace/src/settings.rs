// SPDX-License-Identifier: Apache-2.0
//! The checked, immutable process settings made from the command line.
