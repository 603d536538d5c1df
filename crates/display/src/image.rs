//! Pictures as files: portable pixmaps (Netpbm's `ppm`, type P6) and PNG, both of 8 bits a channel.

use std::io::{self, BufWriter, Write};

use crate::Surface;

/// A file format for pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Portable pixmap.
    #[default]
    Ppm,
    /// Portable Network Graphics.
    Png,
}

/// Writes `surface` to `out`.
///
/// # Errors
/// If `out` does not take it.
pub fn write(surface: &Surface, format: Format, out: impl Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    match format {
        Format::Ppm => write_ppm(surface, &mut out)?,
        Format::Png => write_png(surface, &mut out)?,
    }
    out.flush()
}

fn rgb_row(pixels: &[u32], row: &mut Vec<u8>) {
    row.clear();
    row.extend(pixels.iter().flat_map(|pixel| {
        let [_, red, green, blue] = pixel.to_be_bytes();
        [red, green, blue]
    }));
}

fn write_ppm(surface: &Surface, out: &mut impl Write) -> io::Result<()> {
    let size = surface.size();
    write!(out, "P6\n{} {}\n255\n", size.width, size.height)?;
    let mut row = Vec::new();
    for y in 0..size.height {
        rgb_row(surface.row(y), &mut row);
        out.write_all(&row)?;
    }
    Ok(())
}

fn write_png(surface: &Surface, out: &mut impl Write) -> io::Result<()> {
    let size = surface.size();
    let mut encoder = png::Encoder::new(out, size.width, size.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    let mut stream = writer.stream_writer()?;
    let mut row = Vec::new();
    for y in 0..size.height {
        rgb_row(surface.row(y), &mut row);
        stream.write_all(&row)?;
    }
    stream.finish()?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Size;

    fn picture() -> Surface {
        let mut surface = Surface::new(Size::new(3, 2));
        surface.row_mut(0).copy_from_slice(&[0xff_0000, 0x00_ff00, 0x00_00ff]);
        surface.row_mut(1).copy_from_slice(&[0x12_3456, 0, 0xff_ffff]);
        surface
    }

    const RGB: [u8; 18] =
        [255, 0, 0, 0, 255, 0, 0, 0, 255, 0x12, 0x34, 0x56, 0, 0, 0, 255, 255, 255];

    #[test]
    fn a_pixmap_is_a_header_and_the_channels() {
        let mut file = Vec::new();
        write(&picture(), Format::Ppm, &mut file).unwrap();
        assert_eq!(file, [b"P6\n3 2\n255\n".as_slice(), &RGB].concat());
    }

    #[test]
    fn a_png_decodes_to_the_same() {
        let mut file = Vec::new();
        write(&picture(), Format::Png, &mut file).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (3, 2, png::ColorType::Rgb));
        assert_eq!(pixels, RGB);
    }
}
