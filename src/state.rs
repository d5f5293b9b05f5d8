//! The state that a run carries from step to step, as bytes: saved, and read back into a run that was begun alike.
//! It knows numbers and lengths, and nothing of what they are for.

use crate::{Error, ErrorKind};

/// Bytes that are written, or read, in one order: every part of a run lists its fields once, for both.
///
/// ```
/// use calotype::state::Record;
/// # fn main() -> Result<(), calotype::Error> {
/// fn list(record: &mut Record, level: &mut f64, slopes: &mut [f32]) -> Result<(), calotype::Error> {
///     record.f64(level)?;
///     record.f32s(slopes)
/// }
/// let mut saved = Record::new();
/// list(&mut saved, &mut 14.6, &mut [1.0, 2.0])?;
/// let (mut level, mut slopes) = (0.0, [0.0; 2]);
/// let mut read = Record::of(saved.into_bytes());
/// list(&mut read, &mut level, &mut slopes)?;
/// read.end()?;
/// assert_eq!((level, slopes), (14.6, [1.0, 2.0]));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Record {
    bytes: Vec<u8>,
    /// Where the next field is read; none while fields are written.
    at: Option<usize>,
}

impl Record {
    /// One to write to.
    #[expect(clippy::new_without_default, reason = "an empty one to read from is another")]
    pub fn new() -> Self {
        Self { bytes: Vec::new(), at: None }
    }

    /// One to read from.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { bytes, at: Some(0) }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// [`ErrorKind::Input`] where not all that there is was read.
    pub fn end(&self) -> Result<(), Error> {
        match self.at.map_or(0, |at| self.bytes.len() - at) {
            0 => Ok(()),
            rest => Err(refused(format!("expected its end, got {rest} bytes more"))),
        }
    }

    /// A field of so many bytes.
    fn field<const N: usize>(&mut self, value: [u8; N]) -> Result<[u8; N], Error> {
        match &mut self.at {
            None => {
                self.bytes.extend(value);
                Ok(value)
            }
            Some(at) => {
                let found = self.bytes[*at..].first_chunk::<N>().copied();
                let found = found.ok_or_else(|| refused("expected more, got its end".into()))?;
                *at += N;
                Ok(found)
            }
        }
    }

    /// A number.
    ///
    /// # Errors
    /// Of this and of all others [`ErrorKind::Input`] where a value cannot be read.
    pub fn f64(&mut self, value: &mut f64) -> Result<(), Error> {
        *value = f64::from_le_bytes(self.field(value.to_le_bytes())?);
        Ok(())
    }

    /// A whole number.
    pub fn u64(&mut self, value: &mut u64) -> Result<(), Error> {
        *value = u64::from_le_bytes(self.field(value.to_le_bytes())?);
        Ok(())
    }

    /// A count of at most `max`.
    pub fn count(&mut self, value: &mut usize, max: usize) -> Result<(), Error> {
        let mut wide = *value as u64;
        self.u64(&mut wide)?;
        match usize::try_from(wide).ok().filter(|count| *count <= max) {
            Some(count) => *value = count,
            None => return Err(refused(format!("expected a count of at most {max}, got {wide}"))),
        }
        Ok(())
    }

    /// Whether something is so.
    pub fn flag(&mut self, value: &mut bool) -> Result<(), Error> {
        let mut count = usize::from(*value);
        self.count(&mut count, 1)?;
        *value = count == 1;
        Ok(())
    }

    /// A number that may be absent.
    pub fn option(&mut self, value: &mut Option<f64>) -> Result<(), Error> {
        let (mut is_there, mut number) = (value.is_some(), value.unwrap_or(0.0));
        self.flag(&mut is_there)?;
        self.f64(&mut number)?;
        *value = is_there.then_some(number);
        Ok(())
    }

    /// As many words.
    pub fn u32s(&mut self, values: &mut [u32]) -> Result<(), Error> {
        self.expect_len(values.len())?;
        for value in values {
            *value = u32::from_le_bytes(self.field(value.to_le_bytes())?);
        }
        Ok(())
    }

    /// As many numbers.
    pub fn f32s(&mut self, values: &mut [f32]) -> Result<(), Error> {
        self.expect_len(values.len())?;
        for value in values {
            *value = f32::from_le_bytes(self.field(value.to_le_bytes())?);
        }
        Ok(())
    }

    /// As many bytes.
    pub fn bytes<const N: usize>(&mut self, value: &mut [u8; N]) -> Result<(), Error> {
        *value = self.field(*value)?;
        Ok(())
    }

    fn expect_len(&mut self, len: usize) -> Result<(), Error> {
        let mut found = len as u64;
        self.u64(&mut found)?;
        if found != len as u64 {
            return Err(refused(format!("expected {len} values, got {found}")));
        }
        Ok(())
    }
}

/// A snapshot that cannot be read.
pub(crate) fn refused(problem: String) -> Error {
    Error::new(ErrorKind::Input, format!("snapshot: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_refused() {
        let mut saved = Record::new();
        saved.count(&mut 3, 4).unwrap();
        saved.f32s(&mut [1.0, 2.0]).unwrap();
        let bytes = saved.into_bytes();
        let read = |bytes: &[u8], max: usize, len: usize| {
            let mut record = Record::of(bytes.to_vec());
            record.count(&mut 0, max)?;
            record.f32s(&mut vec![0.0; len])?;
            record.end()
        };
        read(&bytes, 3, 2).unwrap();
        let message = |result: Result<(), Error>| result.unwrap_err().to_string();
        assert_eq!(message(read(&bytes, 2, 2)), "snapshot: expected a count of at most 2, got 3");
        assert_eq!(message(read(&bytes, 3, 1)), "snapshot: expected 1 values, got 2");
        assert_eq!(message(read(&bytes[..bytes.len() - 1], 3, 2)), "snapshot: expected more, got its end");
        assert_eq!(
            message(read(&[&bytes[..], &[0]].concat(), 3, 2)),
            "snapshot: expected its end, got 1 bytes more"
        );
    }
}
