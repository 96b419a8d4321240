// SPDX-License-Identifier: Apache-2.0
//! Signals, the stop token, the task tracker and the drain deadline.
