//! An ONNX file as it lies on disk: its graph without the data, and where in which file the data is.
//! Gigabytes of weights are stepped over, never read. It knows the protobuf wire format and the four fields on the way.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use prost::encoding::encode_varint;

/// `ModelProto.graph`, `GraphProto.initializer` and `TensorProto.raw_data`.
const PATH: [u64; 3] = [7, 5, 9];
/// Data shorter than this stays in the graph: sizes, axes, scales.
const LEAST_BYTES: u64 = 1024;
/// The longest graph without its data that is believed; real ones have a few megabytes.
const MAX_SKELETON_BYTES: u64 = 256 << 20;

/// An ONNX model from which long data was left out.
pub(super) struct Skeleton {
    /// The rest, a protobuf message of its own.
    pub(super) bytes: Vec<u8>,
    /// Per initializer, in their order, where its data lies in the file, if it was left out: offset and length.
    pub(super) data: Vec<Option<(u64, u64)>>,
}

impl Skeleton {
    /// Reads everything in a file but long data.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut walk = Walk { file: BufReader::new(file), position: 0, data: Vec::new(), kept: 0 };
        let bytes = walk.message(len, 0)?;
        Ok(Self { bytes, data: walk.data })
    }
}

struct Walk {
    file: BufReader<File>,
    position: u64,
    data: Vec<Option<(u64, u64)>>,
    /// Bytes of the skeleton so far.
    kept: u64,
}

impl Walk {
    /// Copies the message that ends at `end`, `depth` steps along [`PATH`], but for long data.
    fn message(&mut self, end: u64, depth: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while self.position < end {
            let key = self.varint(end)?;
            let (field, wire) = (key >> 3, key & 7);
            match wire {
                0 => {
                    let value = self.varint(end)?;
                    encode_varint(key, &mut out);
                    encode_varint(value, &mut out);
                }
                1 => self.copy(key, 8, end, &mut out)?,
                5 => self.copy(key, 4, end, &mut out)?,
                2 => {
                    let len = self.varint(end)?;
                    let inner_end =
                        self.position.checked_add(len).filter(|inner| *inner <= end).ok_or_else(cut)?;
                    if depth < 2 && field == PATH[depth] {
                        if depth == 1 {
                            self.data.push(None);
                        }
                        let inner = self.message(inner_end, depth + 1)?;
                        encode_varint(key, &mut out);
                        encode_varint(inner.len() as u64, &mut out);
                        out.extend(inner);
                    } else if depth == 2 && field == PATH[2] && len >= LEAST_BYTES {
                        if let Some(place) = self.data.last_mut() {
                            *place = Some((self.position, len));
                        }
                        self.file.seek_relative(i64::try_from(len).map_err(|_| cut())?)?;
                        self.position = inner_end;
                    } else {
                        encode_varint(key, &mut out);
                        encode_varint(len, &mut out);
                        self.bytes(len, &mut out)?;
                    }
                }
                other => return Err(broken(format!("got wire type {other}"))),
            }
        }
        Ok(out)
    }

    fn copy(&mut self, key: u64, len: u64, end: u64, out: &mut Vec<u8>) -> io::Result<()> {
        if end - self.position < len {
            return Err(cut());
        }
        encode_varint(key, out);
        self.bytes(len, out)
    }

    fn bytes(&mut self, len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        self.kept += len;
        if self.kept > MAX_SKELETON_BYTES {
            return Err(broken(format!(
                "got a graph of more than {MAX_SKELETON_BYTES} bytes without its weights"
            )));
        }
        let read = self.file.by_ref().take(len).read_to_end(out)?;
        self.position += len;
        if (read as u64) < len { Err(cut()) } else { Ok(()) }
    }

    fn varint(&mut self, end: u64) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            if self.position >= end {
                return Err(cut());
            }
            let mut byte = [0];
            self.file.read_exact(&mut byte)?;
            self.position += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(broken("got an overlong number".into()))
    }
}

fn cut() -> io::Error {
    broken("got one that is truncated".into())
}

fn broken(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("expected an ONNX model, {problem}"))
}
