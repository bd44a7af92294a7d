//! A token bucket as the kernel writes and reads it (linux/pkt_sched.h: `struct tc_tbf_qopt`, `TCA_TBF_*`).

use super::Shape;

/// Its name among queues.
pub const KIND: &str = "tbf";
/// `TCA_TBF_PARMS`.
const PARAMETERS: u16 = 1;
/// `TCA_TBF_BURST`: the bucket in bytes, so that nobody needs the kernel's ticks to write one.
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: no table of rates is needed.
const LINK_ETHERNET: u8 = 1;
/// The length of `struct tc_tbf_qopt`: two rates of 12 bytes, three numbers of 4.
const PARAMETERS_BYTES: usize = 36;
/// A tick is this many nanoseconds, as a power of two (`PSCHED_SHIFT`).
const TICK_SHIFT: u32 = 6;
/// Of a netlink attribute.
const HEADER_BYTES: usize = 4;

/// The inside of `TCA_OPTIONS`, in pairs of number and value.
pub(crate) fn encode(shape: Shape) -> [(u16, Vec<u8>); 2] {
    let mut value = Vec::with_capacity(PARAMETERS_BYTES);
    value.extend([0, LINK_ETHERNET]);
    value.extend([0; 6]);
    value.extend(shape.bytes_per_second.to_ne_bytes());
    // No peak rate.
    value.extend([0; 12]);
    value.extend(shape.queue_bytes.to_ne_bytes());
    // The bucket in ticks, and the MTU of the peak rate: told by the other attribute, and not used.
    value.extend([0; 8]);
    [
        (PARAMETERS, value),
        (BURST, shape.burst_bytes.to_ne_bytes().to_vec()),
    ]
}

/// Reads the inside of `TCA_OPTIONS`.
pub(crate) fn decode(options: &[u8]) -> Option<Shape> {
    let value = attribute(options, PARAMETERS)?;
    let number =
        |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?)) };
    let (rate, queue, ticks) = (number(8)?, number(24)?, number(28)?);
    let nanos = u64::from(ticks) << TICK_SHIFT;
    let burst = u128::from(nanos) * u128::from(rate) / 1_000_000_000;
    Some(Shape {
        bytes_per_second: rate,
        burst_bytes: u32::try_from(burst).ok()?,
        queue_bytes: queue,
    })
}

/// The value of an attribute.
fn attribute(mut rest: &[u8], number: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        if kind == number {
            return rest.get(HEADER_BYTES..length);
        }
        rest = rest.get(length.max(HEADER_BYTES).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the kernel tells what it was told: the bucket in ticks.
    fn told(shape: Shape) -> Vec<u8> {
        let [(_, mut value), _] = encode(shape);
        let nanos = u64::from(shape.burst_bytes) * 1_000_000_000 / u64::from(shape.bytes_per_second);
        let ticks = u32::try_from(nanos >> TICK_SHIFT).unwrap();
        value[28..32].copy_from_slice(&ticks.to_ne_bytes());
        let mut all = Vec::new();
        all.extend(8u16.to_ne_bytes());
        all.extend(5u16.to_ne_bytes());
        all.extend([9; 4]);
        all.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        all.extend(PARAMETERS.to_ne_bytes());
        all.extend(value);
        all
    }

    proptest! {
        #[test]
        fn every_bucket_is_read_as_it_was_written(kbit in 64u32..=32_000_000) {
            let shape = Shape::of(kbit);
            let read = decode(&told(shape)).unwrap();
            prop_assert!(shape.is_held_by(&read), "{:?} {:?}", shape, read);
        }

        #[test]
        fn reading_garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _read = decode(&bytes);
        }
    }
}
