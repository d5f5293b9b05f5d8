//! Names that people type: read whatever their case, spaces and punctuation, and where unknown the nearest is found.
//! It knows nothing of what is named.

/// The longest name that is worth a suggestion.
const MAX_SUGGESTED_LEN: usize = 32;

/// A name without case, spaces and punctuation; `++` reads as `pp`.
pub(crate) fn bare(name: &str) -> String {
    name.to_lowercase().replace("++", "pp").chars().filter(|c| c.is_alphanumeric()).collect()
}

/// Which of some names is nearest to one that was typed, unless that is endless.
pub(crate) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = bare(typed);
    if typed.len() >= MAX_SUGGESTED_LEN {
        return None;
    }
    names.min_by_key(|name| edit_distance(&bare(name), &typed))
}

/// How many letters must be put in, taken out or exchanged to make one word of the other (Levenshtein 1966).
fn edit_distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let exchanged = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_edits() {
        for (one, other, edits) in
            [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
        {
            assert_eq!(edit_distance(one, other), edits, "{one} {other}");
            assert_eq!(edit_distance(other, one), edits, "{other} {one}");
        }
    }

    #[test]
    fn endless_names_have_no_neighbour() {
        assert_eq!(nearest("Kitte n", ["sitting", "kitten"].into_iter()), Some("kitten"));
        assert_eq!(nearest(&"k".repeat(1 << 20), ["kitten"].into_iter()), None);
    }
}
