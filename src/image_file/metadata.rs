//! The texts that an image's file carries: recipes in PNG's text chunks, and in the EXIF of JPEG and WebP. Pixels are not
//! read. It knows where texts are kept, and nothing of what they say.

use std::io::{self, Read, Seek, SeekFrom};

use flate2::read::ZlibDecoder;

use crate::{Error, ErrorKind};

/// The longest text, inflated, and the longest EXIF data.
const MAX_BYTES: u64 = 16 << 20;
/// The most chunks or segments that are looked at.
const MAX_PARTS: usize = 100_000;
/// The most entries of a directory in EXIF.
const MAX_ENTRIES: usize = 4096;

/// The recipe in an image's file, in the forms that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// Calotype's own, as JSON.
    pub json: Option<String>,
    /// A1111's `parameters`.
    pub parameters: Option<String>,
    /// What other program's recipe it has.
    pub other: Option<&'static str>,
}

impl Texts {
    /// Reads what a file carries, from its start; nothing for a file that is no PNG, JPEG or WebP.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a file that is damaged before its texts end.
    pub fn read(origin: &str, file: &mut (impl Read + Seek)) -> Result<Option<Self>, Error> {
        let refuse = |error: io::Error| {
            Error::new(ErrorKind::Input, format!("{origin}: expected a complete image")).source(error)
        };
        let mut head = [0; 12];
        let length = file.seek(SeekFrom::End(0)).map_err(refuse)?;
        file.seek(SeekFrom::Start(0)).map_err(refuse)?;
        if length < head.len() as u64 {
            return Ok(None);
        }
        file.read_exact(&mut head).map_err(refuse)?;
        let mut texts = Self::default();
        let found = match &head {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => texts.png(file, length),
            [0xff, 0xd8, 0xff, ..] => texts.jpeg(file),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => texts.webp(file, length),
            _ => return Ok(None),
        };
        found.map_err(refuse)?;
        Ok(Some(texts))
    }

    /// PNG (third edition), section 11.3.3: `tEXt`, `zTXt` and `iTXt`, before or behind the pixels.
    fn png(&mut self, file: &mut (impl Read + Seek), length: u64) -> io::Result<()> {
        let mut at = 8;
        for _ in 0..MAX_PARTS {
            if at + 12 > length {
                break;
            }
            file.seek(SeekFrom::Start(at))?;
            let mut head = [0; 8];
            file.read_exact(&mut head)?;
            let data_bytes = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
            let kind = &head[4..];
            match kind {
                b"IEND" => break,
                b"tEXt" | b"zTXt" | b"iTXt" if data_bytes <= MAX_BYTES => {
                    if let Some((keyword, text)) = text_chunk(kind, &some(file, data_bytes)?) {
                        self.keep(&keyword, text);
                    }
                }
                b"eXIf" if data_bytes <= MAX_BYTES => self.exif(&some(file, data_bytes)?),
                _ => {}
            }
            at += 12 + data_bytes;
        }
        Ok(())
    }

    /// ITU T.81, annex B, and EXIF 2.32, section 4.7.2: application segments before the first scan.
    fn jpeg(&mut self, file: &mut (impl Read + Seek)) -> io::Result<()> {
        file.seek(SeekFrom::Start(2))?;
        for _ in 0..MAX_PARTS {
            let mut marker = [0];
            file.read_exact(&mut marker)?;
            // Fill bytes stand before markers.
            while marker[0] == 0xff {
                file.read_exact(&mut marker)?;
            }
            match marker[0] {
                0xda | 0xd9 => break,
                0x01 | 0xd0..=0xd7 => continue,
                _ => {}
            }
            let mut len = [0; 2];
            file.read_exact(&mut len)?;
            let data_bytes = u64::from(u16::from_be_bytes(len)).saturating_sub(2);
            if marker[0] == 0xe1 {
                self.exif(&some(file, data_bytes)?);
            } else {
                file.seek_relative(data_bytes as i64)?;
            }
        }
        Ok(())
    }

    /// RFC 9649, section 2.7: chunks of a kind, a length and data, padded to an even length.
    fn webp(&mut self, file: &mut (impl Read + Seek), length: u64) -> io::Result<()> {
        let mut at = 12;
        for _ in 0..MAX_PARTS {
            if at + 8 > length {
                break;
            }
            file.seek(SeekFrom::Start(at))?;
            let mut head = [0; 8];
            file.read_exact(&mut head)?;
            let data_bytes = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
            if &head[..4] == b"EXIF" && data_bytes <= MAX_BYTES {
                self.exif(&some(file, data_bytes)?);
            }
            at += 8 + data_bytes + data_bytes % 2;
        }
        Ok(())
    }

    fn keep(&mut self, keyword: &str, text: String) {
        match keyword {
            "calotype" => self.json = self.json.take().or(Some(text)),
            // Under the name of A1111's text.
            "parameters" if is_json(&text) => {
                let is_swarm = text.contains("\"sui_image_params\"");
                self.other =
                    self.other.or(Some(if is_swarm { "metadata of SwarmUI" } else { "metadata of Fooocus" }));
            }
            "parameters" => self.parameters = self.parameters.take().or(Some(text)),
            "prompt" | "workflow" => self.other = self.other.or(Some("a workflow of ComfyUI")),
            "invokeai_metadata" | "sd-metadata" | "invokeai_graph" | "Dream" => {
                self.other = self.other.or(Some("metadata of InvokeAI"));
            }
            _ => {}
        }
    }

    /// EXIF 2.32, section 4.6: `UserComment` of the EXIF directory, with A1111's text, and `ImageDescription`, with our JSON.
    fn exif(&mut self, exif: &[u8]) {
        let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
        let is_big = match tiff.first_chunk() {
            Some(b"MM\0*") => true,
            Some(b"II*\0") => false,
            _ => return,
        };
        let tiff = Tiff { bytes: tiff, is_big };
        let Some(first) = tiff.u32(4) else { return };
        let mut comment = None;
        for (tag, value) in tiff.directory(first as usize) {
            match tag {
                0x010e => {
                    let text = String::from_utf8_lossy(value.bytes).trim_end_matches('\0').to_owned();
                    if text.trim_start().starts_with('{') {
                        self.keep("calotype", text);
                    }
                }
                // What ComfyUI has in a PNG's texts, it has in a WebP's `Make` and `Model`.
                0x010f | 0x0110 => {
                    let text = String::from_utf8_lossy(value.bytes);
                    if let Some((keyword, rest)) =
                        text.split_once(':').filter(|(_, rest)| rest.starts_with('{'))
                    {
                        self.keep(keyword, rest.into());
                    }
                }
                0x8769 => {
                    for (tag, value) in tiff.directory(value.number as usize) {
                        if tag == 0x9286 {
                            comment = Some(value.bytes);
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(text) = comment.and_then(|comment| user_comment(comment, is_big)) {
            self.keep("parameters", text);
        }
    }
}

/// Whether a text is JSON, and no prompt that begins with a bracket.
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// The keyword and the text of a chunk, if it is one.
fn text_chunk(kind: &[u8], data: &[u8]) -> Option<(String, String)> {
    let end = data.iter().position(|&byte| byte == 0)?;
    let (keyword, rest) = (latin1(&data[..end]), &data[end + 1..]);
    let text = match kind {
        b"tEXt" => utf8_or_latin1(rest),
        b"zTXt" => utf8_or_latin1(&inflated(rest.get(1..)?)?),
        _ => {
            let [is_compressed, _method, rest @ ..] = rest else { return None };
            // A language tag, and the keyword in that language.
            let mut parts = rest.splitn(3, |&byte| byte == 0).skip(2);
            let text = parts.next()?;
            let text = if *is_compressed == 0 { text.to_vec() } else { inflated(text)? };
            String::from_utf8_lossy(&text).into_owned()
        }
    };
    Some((keyword, text))
}

fn inflated(data: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    ZlibDecoder::new(data).take(MAX_BYTES + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MAX_BYTES).then_some(text)
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// Latin-1 by the standard; some programs write UTF-8 there.
fn utf8_or_latin1(bytes: &[u8]) -> String {
    str::from_utf8(bytes).map_or_else(|_| latin1(bytes), str::to_owned)
}

/// EXIF 2.32, section 4.6.5: eight bytes name the encoding.
fn user_comment(comment: &[u8], is_big: bool) -> Option<String> {
    let (encoding, text) = comment.split_first_chunk::<8>()?;
    let text = match encoding {
        b"UNICODE\0" => {
            // The standard does not say which byte is first; most writers take the big end whatever the file's order.
            let (even, odd) = (text.iter().step_by(2), text.iter().skip(1).step_by(2));
            let zeros = |bytes: &mut dyn Iterator<Item = &u8>| bytes.filter(|byte| **byte == 0).count();
            let (high, low) = (zeros(&mut { even }), zeros(&mut { odd }));
            let is_big = if high == low { is_big } else { high > low };
            let unit = |pair: &[u8]| {
                let pair = [pair[0], pair[1]];
                if is_big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
            };
            String::from_utf16_lossy(&text.chunks_exact(2).map(unit).collect::<Vec<_>>())
        }
        b"ASCII\0\0\0" | b"\0\0\0\0\0\0\0\0" => utf8_or_latin1(text),
        _ => utf8_or_latin1(comment),
    };
    let text = text.trim_end_matches('\0').trim_start_matches('\u{feff}');
    (!text.is_empty()).then(|| text.to_owned())
}

/// A TIFF structure.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_big: bool,
}

/// The value of an entry: its bytes, and its first four as a number.
struct Entry<'a> {
    bytes: &'a [u8],
    number: u32,
}

impl<'a> Tiff<'a> {
    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.is_big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// The entries of a directory that are within the data.
    fn directory(&self, at: usize) -> Vec<(u16, Entry<'a>)> {
        let count = usize::from(self.u16(at).unwrap_or(0)).min(MAX_ENTRIES);
        let entry = |index: usize| {
            let at = at.checked_add(2)?.checked_add(12 * index)?;
            let (tag, kind) = (self.u16(at)?, self.u16(at + 2)?);
            let (count, number) = (self.u32(at + 4)? as usize, self.u32(at + 8)?);
            let len = count.checked_mul(match kind {
                3 | 8 => 2,
                4 | 9 | 11 => 4,
                5 | 10 | 12 => 8,
                _ => 1,
            })?;
            let start = if len <= 4 { at + 8 } else { number as usize };
            let bytes = self.bytes.get(start..start.checked_add(len)?)?;
            Some((tag, Entry { bytes, number }))
        };
        (0..count).filter_map(entry).collect()
    }
}

fn some(file: &mut impl Read, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file.take(len).read_to_end(&mut bytes)? as u64 != len {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Texts>, Error> {
        Texts::read("x", &mut Cursor::new(bytes))
    }

    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        // Checksums are left to who reads pixels.
        [&(data.len() as u32).to_be_bytes(), &kind[..], data, &[0; 4]].concat()
    }

    fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
        [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &[0; 13]), &chunks.concat(), &chunk(b"IEND", &[])]
            .concat()
    }

    fn deflated(text: &str) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    /// EXIF with a description and a comment, in either order of bytes.
    fn exif(is_big: bool, description: &[u8], comment: &[u8]) -> Vec<u8> {
        let short = |n: u16| if is_big { n.to_be_bytes() } else { n.to_le_bytes() };
        let long = |n: usize| if is_big { (n as u32).to_be_bytes() } else { (n as u32).to_le_bytes() };
        let entry = |tag: u16, kind: u16, count: usize, value: usize| {
            [&short(tag)[..], &short(kind), &long(count), &long(value)].concat()
        };
        let (second, data) = (8 + 2 + 24 + 4, 8 + 2 + 24 + 4 + 2 + 12 + 4);
        [
            if is_big { b"MM\0*" } else { b"II*\0" },
            &long(8)[..],
            &short(2),
            &entry(0x010e, 2, description.len(), data),
            &entry(0x8769, 4, 1, second),
            &[0; 4],
            &short(1),
            &entry(0x9286, 7, comment.len(), data + description.len()),
            &[0; 4],
            description,
            comment,
        ]
        .concat()
    }

    fn utf16(text: &str, is_big: bool) -> Vec<u8> {
        let bytes = |unit: u16| if is_big { unit.to_be_bytes() } else { unit.to_le_bytes() };
        b"UNICODE\0".iter().copied().chain(text.encode_utf16().flat_map(bytes)).collect()
    }

    #[test]
    fn texts_are_found_wherever_programs_put_them() {
        const TEXT: &str = "a caf\u{e9} \u{1f34e}\nSteps: 1";
        let international = |is_compressed: u8, text: &[u8]| {
            chunk(b"iTXt", &[b"parameters\0", &[is_compressed, 0][..], b"en\0key\0", text].concat())
        };
        let jpeg = |exif: &[u8]| {
            let segment = [b"Exif\0\0", exif].concat();
            let length = (segment.len() as u16 + 2).to_be_bytes();
            [b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xe1", &length[..], &segment, b"\xff\xda\0\x02"].concat()
        };
        let webp = |exif: &[u8]| {
            let length = (exif.len() as u32).to_le_bytes();
            [b"RIFF\0\0\0\0WEBPVP8L\x03\0\0\0abc\0EXIF", &length[..], exif].concat()
        };
        let comments = [utf16(TEXT, true), utf16(TEXT, false), [b"ASCII\0\0\0", TEXT.as_bytes()].concat()];
        let mut files = vec![
            png(&[chunk(b"tEXt", &[b"parameters\0", TEXT.as_bytes()].concat())]),
            png(&[chunk(b"zTXt", &[b"parameters\0\0", &deflated(TEXT)[..]].concat())]),
            png(&[international(0, TEXT.as_bytes())]),
            png(&[international(1, &deflated(TEXT))]),
            png(&[chunk(b"IDAT", b"pixels"), international(0, TEXT.as_bytes())]),
        ];
        for is_big in [false, true] {
            for comment in &comments {
                let exif = exif(is_big, b"a title", comment);
                files.extend([jpeg(&exif), webp(&exif), png(&[chunk(b"eXIf", &exif)])]);
            }
        }
        for (index, file) in files.iter().enumerate() {
            let texts = read(file).unwrap().expect("an image");
            assert_eq!(texts, Texts { parameters: Some(TEXT.into()), ..Texts::default() }, "file {index}");
            // Every beginning of it, and with any byte changed, is read or refused.
            for at in 0..file.len() {
                drop(read(&file[..at]));
                let mut changed = file.clone();
                changed[at] ^= 0xff;
                drop(read(&changed));
            }
        }
        let latin1 = png(&[chunk(b"tEXt", b"parameters\0caf\xe9")]);
        assert_eq!(read(&latin1).unwrap().unwrap().parameters.as_deref(), Some("caf\u{e9}"));
        let json = exif(true, b"{\"version\": 1}\0", &comments[0]);
        assert_eq!(read(&jpeg(&json)).unwrap().unwrap().json.as_deref(), Some("{\"version\": 1}"));
    }

    #[test]
    fn what_is_not_ours_is_named_or_nothing() {
        for (keyword, other) in [
            ("workflow", Some("a workflow of ComfyUI")),
            ("invokeai_metadata", Some("metadata of InvokeAI")),
            ("parameters", Some("metadata of Fooocus")),
            ("Title", None),
        ] {
            let file = png(&[chunk(b"tEXt", &[keyword.as_bytes(), b"\0{}"].concat())]);
            assert_eq!(read(&file).unwrap().unwrap(), Texts { other, ..Texts::default() });
        }
        let swarm = png(&[chunk(b"tEXt", b"parameters\0{\"sui_image_params\": {}}")]);
        assert_eq!(read(&swarm).unwrap().unwrap().other, Some("metadata of SwarmUI"));
        let prompt = png(&[chunk(b"tEXt", b"parameters\0{red|blue} car\nSteps: 1")]);
        assert!(read(&prompt).unwrap().unwrap().parameters.is_some());
        let mut comfy = exif(true, b"workflow:{\"a\": 1}\0", b"");
        let make = comfy.windows(2).position(|tag| tag == [0x01, 0x0e]).unwrap();
        comfy[make + 1] = 0x0f;
        assert_eq!(
            read(&png(&[chunk(b"eXIf", &comfy)])).unwrap().unwrap().other,
            Some("a workflow of ComfyUI")
        );
        for none in [&b""[..], b"{\"version\": 1}", b"GIF89a and more of it", &[0xff; 20]] {
            assert!(read(none).unwrap().is_none() || none.starts_with(b"\xff\xd8"), "{none:?}");
        }
        let bomb =
            png(&[chunk(b"zTXt", &[b"parameters\0\0", &deflated(&"0".repeat(20 << 20))[..]].concat())]);
        assert_eq!(read(&bomb).unwrap().unwrap(), Texts::default());
    }
}
