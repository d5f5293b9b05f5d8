//! What a file is that holds no weights, by its first bytes, and the way out.
//! It knows the magic numbers of formats, and reads nothing of what follows them.

use super::safetensors::Problem;

/// How much of a file's beginning is looked at.
pub(super) const PREFIX_BYTES: usize = 512;

const DOWNLOAD: &str = "download the file itself, not the page about it";
const PICKLE: &str = "convert it in Python with torch.load(..., weights_only=True) and safetensors.torch.save_file, or take the \
                      model's .safetensors file";
const UNPACK: &str = "unpack it, and give what is in it";
const IMAGE: &str = "give a model; images go with {init}";

/// Magic numbers: their offsets, their bytes, the format, and the way out.
const MAGIC: [(usize, &[u8], &str, &str); 20] = [
    (
        0,
        b"version https://git-lfs",
        "the pointer of git-lfs to a file that was not downloaded",
        "run `git lfs pull` in its repository",
    ),
    (
        0,
        b"PK\x03\x04",
        "a PyTorch pickle (or another zip archive), which can run code when it is opened",
        PICKLE,
    ),
    (0, b"\x80\x02", "a PyTorch pickle, which can run code when it is opened", PICKLE),
    (0, b"\x80\x03", "a pickle, which can run code when it is opened", PICKLE),
    (0, b"\x80\x04", "a pickle, which can run code when it is opened", PICKLE),
    (0, b"\x80\x05", "a pickle, which can run code when it is opened", PICKLE),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"\x89HDF\r\n", "a Keras model (HDF5)", "take the model's .safetensors file"),
    (0, b"\x93NUMPY", "a NumPy array", "take the model's .safetensors file"),
    (0, b"GGML", "GGML, the format before GGUF", "take the model's .safetensors or .gguf file"),
    (0, b"\x89PNG", "a PNG image", IMAGE),
    (0, b"\xff\xd8\xff", "a JPEG image", IMAGE),
    (4, b"TFL3", "a TensorFlow Lite model", "take the model's .safetensors file"),
    (0, b"RIFF", "an image or a sound (RIFF)", IMAGE),
];

/// What a file is, given its first [`PREFIX_BYTES`] or all that it has.
pub(super) fn of(prefix: &[u8]) -> Option<Problem> {
    let found = |what: &str, help: &'static str| {
        Some(Problem {
            message: format!("expected weights (safetensors or GGUF), got {what}"),
            help: Some(help.into()),
        })
    };
    if prefix.is_empty() {
        return found("an empty file", "download it again");
    }
    if prefix.iter().all(|byte| *byte == 0) && prefix.len() == PREFIX_BYTES {
        return found("only zeros", "the download did not begin or was lost: download it again");
    }
    for (at, magic, what, help) in MAGIC {
        if prefix.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return found(what, help);
        }
    }
    // Version of the format, then the producer's name, its version, its domain, a model version, a text or the graph.
    if let [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42, ..] = prefix {
        return found(
            "an ONNX graph",
            "give the folder that holds unet, text_encoder and vae_decoder, each with its .onnx file",
        );
    }
    let text = prefix.strip_prefix(b"\xef\xbb\xbf").unwrap_or(prefix).trim_ascii_start();
    let starts = |magic: &str| {
        text.get(..magic.len()).is_some_and(|start| start.eq_ignore_ascii_case(magic.as_bytes()))
    };
    if ["<!doctype html", "<html", "<head", "<?xml", "<!--", "<script"].iter().any(|magic| starts(magic)) {
        return found("a web page", DOWNLOAD);
    }
    let behind = text.get(1..).unwrap_or_default().trim_ascii_start().first();
    let is_json = match text.first() {
        Some(b'{') => matches!(behind, Some(b'"' | b'}')),
        Some(b'[') => matches!(behind, Some(b'{' | b'[' | b'"' | b']' | b'0'..=b'9')),
        _ => false,
    };
    if is_json {
        return found("JSON", "give the file or the folder that it describes");
    }
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~') || *byte >= 0x80;
    if prefix.iter().all(is_text) && std::str::from_utf8(prefix).is_ok() {
        return found("text", DOWNLOAD);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_kinds_are_named_with_a_way_out() {
        let tar = [&[b'x'; 257][..], b"ustar\0"].concat();
        let cases: [(&[u8], &str, &str); 15] = [
            (b"[package]\nname = \"x\"", "got text", "download"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                "git-lfs",
                "git lfs pull",
            ),
            (b"\n<!DOCTYPE HTML>\n<html>", "a web page", "download the file itself"),
            (b"\xef\xbb\xbf<html lang=en>", "a web page", "download"),
            (b"{\"error\": \"not found\"}", "JSON", "give the file"),
            (b"PK\x03\x04\0\0archive/data.pkl", "a PyTorch pickle", "convert it"),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "a PyTorch pickle", "convert it"),
            (b"\x80\x04\x95", "a pickle", "convert it"),
            (b"\x1f\x8b\x08\0", "a gzip archive", "unpack"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7z archive", "unpack"),
            (&tar, "a tar archive", "unpack"),
            (b"\x08\x08\x12\x07pytorch", "an ONNX graph", "the folder that holds"),
            (b"", "an empty file", "download"),
            (&[0; PREFIX_BYTES], "only zeros", "download"),
            (b"Entry not found", "text", "download"),
        ];
        for (prefix, what, help) in cases {
            let Problem { message, help: got } = of(prefix).unwrap_or_else(|| panic!("{what}: not known"));
            assert!(message.contains(what), "{message}");
            assert!(got.as_ref().is_some_and(|got| got.contains(help)), "{what}: {got:?}");
        }
        assert!(of(b"\x07\x01\xff\x00").is_none());
    }
}
