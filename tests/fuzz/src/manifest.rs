//! The manifest of a bundle: what is read, written and read again is the same.

use calotype::manifest::Manifest;

pub fn run(bytes: &[u8]) {
    let Ok((manifest, contents)) = Manifest::parse("manifest", bytes) else { return };
    let written = manifest.to_json(&contents);
    let (again, contents_again) = Manifest::parse("manifest", &written)
        .unwrap_or_else(|error| panic!("written, then refused: {error}"));
    assert_eq!(format!("{manifest:?}"), format!("{again:?}"));
    assert_eq!(String::from_utf8_lossy(&again.to_json(&contents_again)), String::from_utf8_lossy(&written));
}
