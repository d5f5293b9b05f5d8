//! The bytes of an image's file: in a file, or in memory; and readers of some of its parts. It knows nothing of formats.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;

/// Bytes that can be read again.
#[derive(Debug)]
pub(super) enum Data {
    File(File),
    Bytes(Cursor<Vec<u8>>),
}

impl Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Bytes(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for Data {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Bytes(bytes) => bytes.seek(to),
        }
    }
}

/// Parts of a file, in order, neighbours as one.
#[derive(Debug)]
pub(super) struct Spans {
    kept: Vec<Range<u64>>,
    /// How many parts were looked at, kept or not.
    looked_at: usize,
}

impl Spans {
    pub(super) fn kept(first: Range<u64>) -> Self {
        Self { kept: vec![first], looked_at: 0 }
    }

    /// Adds a part that lies behind the others; of none nothing is kept.
    pub(super) fn keep(&mut self, span: Range<u64>) {
        match self.kept.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            _ if span.is_empty() => {}
            _ => self.kept.push(span),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Counts a part that is looked at; how many that makes.
    pub(super) fn look(&mut self) -> usize {
        self.looked_at += 1;
        self.looked_at
    }

    pub(super) fn into_ranges(self) -> Vec<Range<u64>> {
        self.kept
    }
}

/// Parts of a file, read as if there were nothing between them.
pub(super) struct Parts<'a> {
    data: &'a mut Data,
    spans: &'a [Range<u64>],
    /// In what is read.
    at: u64,
}

impl<'a> Parts<'a> {
    pub(super) fn of(data: &'a mut Data, spans: &'a [Range<u64>]) -> Self {
        Self { data, spans, at: 0 }
    }

    fn len(&self) -> u64 {
        self.spans.iter().map(|span| span.end - span.start).sum()
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut before = 0;
        for span in self.spans {
            let length = span.end - span.start;
            if self.at < before + length {
                let offset = self.at - before;
                let most = (length - offset).min(buffer.len() as u64) as usize;
                self.data.seek(SeekFrom::Start(span.start + offset))?;
                let read = self.data.read(&mut buffer[..most])?;
                self.at += read as u64;
                return Ok(read);
            }
            before += length;
        }
        Ok(0)
    }
}

impl Seek for Parts<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(offset) => self.len().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// A file as if two of its bytes were others.
pub(super) struct Patched<'a> {
    data: &'a mut Data,
    patch: Option<(u64, [u8; 2])>,
    at: u64,
}

impl<'a> Patched<'a> {
    /// `patch` is a place from the start of the file, and what is read there.
    pub(super) fn of(data: &'a mut Data, patch: Option<(u64, [u8; 2])>) -> Self {
        Self { data, patch, at: 0 }
    }
}

impl Read for Patched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.data.seek(SeekFrom::Start(self.at))?;
        let read = self.data.read(buffer)?;
        for (place, byte) in self.patch.iter().flat_map(|(start, bytes)| (*start..).zip(bytes)) {
            let within = place.checked_sub(self.at).and_then(|offset| usize::try_from(offset).ok());
            if let Some(stored) = within.and_then(|offset| buffer[..read].get_mut(offset)) {
                *stored = *byte;
            }
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Patched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(place) => place,
            SeekFrom::Current(offset) => {
                self.at.checked_add_signed(offset).ok_or(io::ErrorKind::InvalidInput)?
            }
            SeekFrom::End(_) => self.data.seek(to)?,
        };
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bytes_are_read_as_others_however_they_are_read() {
        let mut data = Data::Bytes(Cursor::new((0..9).collect()));
        for step in 1..9 {
            for at in 0..=8 {
                let mut patched = Patched::of(&mut data, Some((3, [100, 101])));
                assert_eq!(patched.seek(SeekFrom::Start(at)).unwrap(), at);
                let (mut read, mut piece) = (Vec::new(), vec![0; step]);
                while let count @ 1.. = patched.read(&mut piece).unwrap() {
                    read.extend_from_slice(&piece[..count]);
                }
                assert_eq!(
                    read,
                    [0, 1, 2, 100, 101, 5, 6, 7, 8][at as usize..],
                    "from {at}, {step} at a time"
                );
            }
        }
    }

    #[test]
    fn parts_are_read_as_one() {
        let mut spans = Spans::kept(0..2);
        [2..3, 5..5, 6..9, 12..13].into_iter().for_each(|span| spans.keep(span));
        assert_eq!(spans.len(), 3);
        let spans = spans.into_ranges();
        let mut data = Data::Bytes(Cursor::new((0..20).collect()));
        let mut parts = Parts::of(&mut data, &spans);
        let mut read = Vec::new();
        parts.read_to_end(&mut read).unwrap();
        assert_eq!(read, [0, 1, 2, 6, 7, 8, 12]);
        for at in 0..read.len() {
            assert_eq!(parts.seek(SeekFrom::Start(at as u64)).unwrap(), at as u64);
            let mut rest = Vec::new();
            parts.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, read[at..]);
        }
        assert_eq!(parts.seek(SeekFrom::End(-2)).unwrap(), 5);
        assert!(parts.seek(SeekFrom::Current(-6)).is_err());
    }
}
