// SPDX-License-Identifier: Apache-2.0
//! Size and alignment of every shared structure, and that their fields leave no gap.

use core::mem::{align_of, size_of};

use crate::{
    address::{Address, Address4, Address6, Port},
    event::Event,
    maps::AgentIdentity,
    original_dst::{OriginalDst, OriginalDstKey, SocketRecord},
    redirect::{CidrKey4, CidrKey6, Destination, DestinationKey4, DestinationKey6, Settings},
    workload::{UdpPeerKey, WorkloadEntry, WorkloadKey},
};

/// Sum of the sizes of the named fields; the pattern is exhaustive, so a new field must be named.
macro_rules! fields_size {
    ($type:ident { $($field:ident),+ $(,)? }) => {{
        fn sum(value: &$type) -> usize {
            let $type { $($field),+ } = value;
            0 $(+ size_of_val($field))+
        }
        // SAFETY: every structure here is plain old data, for which all zeroes is a valid value.
        sum(&unsafe { core::mem::zeroed::<$type>() })
    }};
}

#[test]
fn structures_have_the_size_and_alignment_of_the_layout_version() {
    for (name, size, align, expected) in [
        (
            "Address4",
            size_of::<Address4>(),
            align_of::<Address4>(),
            (4, 4),
        ),
        (
            "Address6",
            size_of::<Address6>(),
            align_of::<Address6>(),
            (16, 4),
        ),
        (
            "Address",
            size_of::<Address>(),
            align_of::<Address>(),
            (16, 4),
        ),
        ("Port", size_of::<Port>(), align_of::<Port>(), (2, 2)),
        (
            "Settings",
            size_of::<Settings>(),
            align_of::<Settings>(),
            (112, 8),
        ),
        (
            "WorkloadKey",
            size_of::<WorkloadKey>(),
            align_of::<WorkloadKey>(),
            (16, 8),
        ),
        (
            "WorkloadEntry",
            size_of::<WorkloadEntry>(),
            align_of::<WorkloadEntry>(),
            (8, 4),
        ),
        (
            "UdpPeerKey",
            size_of::<UdpPeerKey>(),
            align_of::<UdpPeerKey>(),
            (48, 8),
        ),
        ("Event", size_of::<Event>(), align_of::<Event>(), (56, 8)),
        (
            "DestinationKey4",
            size_of::<DestinationKey4>(),
            align_of::<DestinationKey4>(),
            (8, 4),
        ),
        (
            "DestinationKey6",
            size_of::<DestinationKey6>(),
            align_of::<DestinationKey6>(),
            (20, 4),
        ),
        (
            "CidrKey4",
            size_of::<CidrKey4>(),
            align_of::<CidrKey4>(),
            (8, 4),
        ),
        (
            "CidrKey6",
            size_of::<CidrKey6>(),
            align_of::<CidrKey6>(),
            (20, 4),
        ),
        (
            "Destination",
            size_of::<Destination>(),
            align_of::<Destination>(),
            (2, 1),
        ),
        (
            "OriginalDst",
            size_of::<OriginalDst>(),
            align_of::<OriginalDst>(),
            (48, 8),
        ),
        (
            "OriginalDstKey",
            size_of::<OriginalDstKey>(),
            align_of::<OriginalDstKey>(),
            (48, 8),
        ),
        (
            "SocketRecord",
            size_of::<SocketRecord>(),
            align_of::<SocketRecord>(),
            (72, 8),
        ),
        (
            "AgentIdentity",
            size_of::<AgentIdentity>(),
            align_of::<AgentIdentity>(),
            (16, 8),
        ),
    ] {
        assert_eq!((size, align), expected, "{name}");
    }
}

#[test]
fn structures_have_no_implicit_padding() {
    assert_eq!(
        fields_size!(Settings {
            layout_version,
            failure_policy,
            outbound_policy,
            policy_by_workload,
            heartbeat_limit_ns,
            own_cgroup_id,
            own_netns_cookie,
            loopback4,
            loopback6,
            node4,
            node6,
            redirect_port,
            padding
        }),
        size_of::<Settings>()
    );
    assert_eq!(
        fields_size!(WorkloadKey { id, kind, padding }),
        size_of::<WorkloadKey>()
    );
    assert_eq!(
        fields_size!(WorkloadEntry {
            index,
            redirect_port,
            outbound_policy,
            listening
        }),
        size_of::<WorkloadEntry>()
    );
    assert_eq!(
        fields_size!(UdpPeerKey {
            socket_cookie,
            local,
            peer,
            local_port,
            peer_port,
            padding
        }),
        size_of::<UdpPeerKey>()
    );
    assert_eq!(
        fields_size!(Event {
            time_ns,
            cgroup_id,
            netns_cookie,
            pid,
            interface,
            address,
            port,
            protocol,
            kind,
            program,
            outcome,
            padding
        }),
        size_of::<Event>()
    );
    assert_eq!(
        fields_size!(DestinationKey4 {
            address,
            port,
            protocol,
            padding
        }),
        size_of::<DestinationKey4>()
    );
    assert_eq!(
        fields_size!(DestinationKey6 {
            address,
            port,
            protocol,
            padding
        }),
        size_of::<DestinationKey6>()
    );
    assert_eq!(
        fields_size!(CidrKey4 {
            port,
            protocol,
            padding,
            address
        }),
        size_of::<CidrKey4>()
    );
    assert_eq!(
        fields_size!(CidrKey6 {
            port,
            protocol,
            padding,
            address
        }),
        size_of::<CidrKey6>()
    );
    assert_eq!(
        fields_size!(Destination {
            action,
            address_bits
        }),
        size_of::<Destination>()
    );
    assert_eq!(
        fields_size!(OriginalDst {
            address,
            port,
            padding,
            cgroup_id,
            netns_cookie,
            decided_at_ns
        }),
        size_of::<OriginalDst>()
    );
    assert_eq!(
        fields_size!(OriginalDstKey {
            netns_cookie,
            source_address,
            redirect_address,
            source_port,
            redirect_port,
            padding
        }),
        size_of::<OriginalDstKey>()
    );
    assert_eq!(
        fields_size!(SocketRecord {
            original,
            redirect_address,
            redirect_port,
            padding
        }),
        size_of::<SocketRecord>()
    );
    assert_eq!(
        fields_size!(AgentIdentity {
            socket_cookie,
            cgroup_id
        }),
        size_of::<AgentIdentity>()
    );
}
