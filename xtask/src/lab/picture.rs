//! Whether a screenshot shows something.

use crate::fault::{Done, Fault};

/// A screen with less than this share of other pixels shows nothing: one line of text has more.
const SHOWN_PER_MILLE_MIN: u64 = 2;

/// What a picture is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Pixels that differ from the most common colour.
    pub(super) shown_per_mille: u64,
}

/// Decodes a PNG and looks at it; a blank one is a fault.
pub(super) fn look(bytes: &[u8]) -> Done<Look> {
    let broken = |error: png::DecodingError| {
        Fault::new(
            "the screenshot is no PNG",
            error,
            "look at the file with an image viewer",
        )
    };
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(broken)?;
    let mut pixels = vec![0; reader.output_buffer_size().unwrap_or_default()];
    let frame = reader.next_frame(&mut pixels).map_err(broken)?;
    let samples = frame.color_type.samples();
    let mut counts: std::collections::HashMap<&[u8], u64> = std::collections::HashMap::new();
    for pixel in pixels
        .get(..frame.buffer_size())
        .unwrap_or_default()
        .chunks_exact(samples)
    {
        *counts.entry(pixel).or_default() += 1;
    }
    let all: u64 = counts.values().sum();
    let most = counts.values().copied().max().unwrap_or_default();
    let look = Look {
        width: frame.width,
        height: frame.height,
        shown_per_mille: (all - most) * 1000 / all.max(1),
    };
    if look.shown_per_mille >= SHOWN_PER_MILLE_MIN {
        return Ok(look);
    }
    Err(Fault::new(
        "the screen is blank",
        format!("{look:?}"),
        "see whether the guest wrote to its screen; its serial line tells how far it came",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(lit: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 100, 10);
        encoder.set_color(png::ColorType::Rgb);
        let mut pixels = vec![0; 3000];
        for sample in pixels.iter_mut().take(lit * 3) {
            *sample = 170;
        }
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        bytes
    }

    #[test]
    fn a_screen_with_text_differs_from_a_blank_one() {
        let seen = look(&picture(40)).unwrap();
        assert_eq!((seen.width, seen.height, seen.shown_per_mille), (100, 10, 40));
        assert!(look(&picture(0)).unwrap_err().what.contains("blank"));
        assert!(look(&picture(1)).is_err());
        assert!(look(b"P6").unwrap_err().what.contains("no PNG"));
    }
}
