//! The manual's tables beside the source that they describe.

use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The rows of Markdown tables: the cells of each.
fn rows(page: &str) -> impl Iterator<Item = Vec<String>> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| what |");
    page.lines().filter(is_row).map(|line| {
        let cells = line.replace("\\|", "\u{0}");
        cells.trim_matches('|').split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
    })
}

/// The value of a constant, as a number: `1 << 16`, `10_000`, `8192 * 3`.
fn value(expression: &str) -> u64 {
    let number = |text: &str| -> u64 {
        let digits = text.trim().replace('_', "");
        let digits = digits.strip_suffix(".0").unwrap_or(&digits);
        digits.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    match expression.split_once("<<") {
        Some((left, right)) => number(left) << number(right),
        None => expression.split('*').map(number).product(),
    }
}

/// As the manual writes it: bytes in the largest unit that divides them, other numbers with commas.
fn written(name: &str, value: u64) -> String {
    if name.ends_with("_BYTES") {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "bytes")];
        let (shift, unit) = units.into_iter().find(|(shift, _)| value.is_multiple_of(1 << shift)).unwrap();
        return format!("{} {unit}", value >> shift);
    }
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn limits_are_those_of_the_source() {
    let page = fs::read_to_string(Path::new(ROOT).join("src/manual/limits.md")).unwrap();
    let mut count = 0;
    for row in rows(&page) {
        let [what, limit, constant] = &row[..] else { panic!("{row:?}") };
        let constant = constant.trim_matches('`');
        let (module, name) = constant.rsplit_once("::").unwrap();
        let file = Path::new(ROOT).join("src").join(module.replace("::", "/")).with_extension("rs");
        let source = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut lines = source.lines().filter(|line| line.contains(&format!("const {name}: ")));
        let line = lines.next().unwrap_or_else(|| panic!("{constant}: not in {}", file.display()));
        let (_, expression) = line.split_once(" = ").unwrap();
        assert_eq!(*limit, written(name, value(expression.trim_end_matches(';'))), "{what}: {constant}");
        count += 1;
    }
    assert!(count > 30, "only {count} rows were found");
}
