//! A measurement as Markdown, to be posted as it is, and how it compares with another. It knows nothing of how it was made.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Measurement, Part};

const MIB: f64 = (1u64 << 20) as f64;

/// The measurement, with a column for how much of the time of an earlier one each part takes.
pub(super) fn text(now: &Measurement, before: Option<&Measurement>) -> String {
    let mut text = format!(
        "calotype {}, ONNX Runtime {} ({}), {}, {} cores, {} threads\n{} at {}, {} steps, guidance {}: {} images after the first\n\n",
        now.calotype,
        now.onnxruntime,
        now.provider,
        now.cpu.as_deref().unwrap_or("unknown CPU"),
        now.cores,
        now.threads,
        now.model,
        now.size,
        now.steps,
        now.guidance,
        now.runs,
    );
    let mut add = |line: String| text += &(line + "\n");
    let compared = if before.is_some() { " of the earlier |" } else { "" };
    add(format!("| part | median | least | most | GMAC/s | of peak |{compared}"));
    add(format!("|---|---|---|---|---|---|{}", if before.is_some() { "---|" } else { "" }));
    for part in &now.parts {
        let speed = part.gmac_per_s.map_or(String::new(), |speed| format!("{speed:.1}"));
        let share = part.gmac_per_s.zip(now.peak_gmac_per_s);
        let share = share.map_or(String::new(), |(speed, peak)| format!("{:.0} %", 100.0 * speed / peak));
        let times = [part.median_s, part.least_s, part.most_s].map(time).join(" | ");
        let ratio = match before {
            Some(before) => ratio(part, before).map_or(" |".into(), |ratio| format!(" {ratio:.2} |")),
            None => String::new(),
        };
        add(format!("| {} | {times} | {speed} | {share} |{ratio}", part.name));
    }
    add(format!(
        "\nfirst image {} after the start; host share {:.1} %",
        time(now.first_image_s),
        100.0 * now.host_share
    ));
    if let Some(peak) = now.peak_gmac_per_s {
        add(format!("peak: {peak:.1} GMAC/s in products of 32-bit floats"));
    }
    let mib =
        |bytes: Option<u64>| bytes.map_or("unknown".into(), |bytes| format!("{:.0} MiB", bytes as f64 / MIB));
    let budget = now.budget_bytes.map_or(String::new(), |bytes| format!(", budget {}", mib(Some(bytes))));
    add(format!("memory: {} at most, planned {}{budget}", mib(now.peak_bytes), mib(now.planned_bytes)));
    if let (Some(watts), Some(of)) = (now.watts, &now.watts_of) {
        let image = now.parts.iter().find(|part| part.name == "image").map_or(0.0, |part| part.median_s);
        add(format!("power: {watts:.1} W ({of}), {:.1} J an image", watts * image));
    }
    if let Some(before) = before {
        let others = differences(now, before);
        if !others.is_empty() {
            writeln!(text, "the earlier measurement differs in {}", others.join(", "))
                .expect("a String takes all text");
        }
    }
    text
}

/// How much of the time of an earlier measurement each part takes, by its name.
pub(super) fn ratios(now: &Measurement, before: &Measurement) -> Vec<(String, Value)> {
    let ratios = now.parts.iter().map(|part| (part.name.clone(), json!(ratio(part, before))));
    ratios.collect()
}

fn ratio(part: &Part, before: &Measurement) -> Option<f64> {
    let earlier = before.parts.iter().find(|earlier| earlier.name == part.name)?;
    (earlier.median_s > 0.0).then(|| part.median_s / earlier.median_s)
}

/// What else is not as it was.
fn differences(now: &Measurement, before: &Measurement) -> Vec<String> {
    let of = |measurement: &Measurement| {
        [
            ("calotype", measurement.calotype.clone()),
            ("ONNX Runtime", measurement.onnxruntime.clone()),
            ("CPU", measurement.cpu.clone().unwrap_or_default()),
            ("cores", measurement.cores.to_string()),
            ("threads", measurement.threads.to_string()),
            ("provider", measurement.provider.clone()),
            ("model", measurement.model.clone()),
            ("size", measurement.size.clone()),
            ("steps", measurement.steps.to_string()),
            ("guidance", measurement.guidance.to_string()),
            (
                "budget",
                measurement
                    .budget_bytes
                    .map_or("none".into(), |bytes| format!("{:.0} MiB", bytes as f64 / MIB)),
            ),
        ]
    };
    let pairs = of(now).into_iter().zip(of(before));
    pairs
        .filter(|((_, now), (_, before))| now != before)
        .map(|((what, _), (_, before))| format!("{what} ({before})"))
        .collect()
}

/// Seconds with three digits.
fn time(seconds: f64) -> String {
    match seconds {
        _ if seconds >= 100.0 => format!("{seconds:.0} s"),
        _ if seconds >= 10.0 => format!("{seconds:.1} s"),
        _ if seconds >= 1.0 => format!("{seconds:.2} s"),
        _ if seconds >= 0.1 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds >= 0.01 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.2} ms", seconds * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(median_s: f64) -> Measurement {
        Measurement {
            calotype: "1.0.0".into(),
            onnxruntime: "1.2.3".into(),
            cpu: Some("A CPU".into()),
            cores: 4,
            threads: 2,
            provider: "cpu".into(),
            model: "m".into(),
            size: "64x64".into(),
            steps: 5,
            guidance: 3.5,
            runs: 3,
            parts: [("step", Some(25.0)), ("image", None)]
                .map(|(name, gmac_per_s)| Part {
                    name: name.into(),
                    median_s,
                    least_s: median_s / 2.0,
                    most_s: median_s * 2.0,
                    samples: 3,
                    gmac_per_s,
                })
                .to_vec(),
            first_image_s: 123.4,
            host_share: 0.021,
            peak_gmac_per_s: Some(50.0),
            budget_bytes: None,
            planned_bytes: Some(90 << 20),
            peak_bytes: Some(80 << 20),
            watts: Some(6.0),
            watts_of: Some("board".into()),
        }
    }

    #[test]
    fn a_table_of_one_measurement() {
        let expected = "calotype 1.0.0, ONNX Runtime 1.2.3 (cpu), A CPU, 4 cores, 2 threads\n\
                        m at 64x64, 5 steps, guidance 3.5: 3 images after the first\n\
                        \n\
                        | part | median | least | most | GMAC/s | of peak |\n\
                        |---|---|---|---|---|---|\n\
                        | step | 500 ms | 250 ms | 1.00 s | 25.0 | 50 % |\n\
                        | image | 500 ms | 250 ms | 1.00 s |  |  |\n\
                        \n\
                        first image 123 s after the start; host share 2.1 %\n\
                        peak: 50.0 GMAC/s in products of 32-bit floats\n\
                        memory: 80 MiB at most, planned 90 MiB\n\
                        power: 6.0 W (board), 3.0 J an image\n";
        assert_eq!(text(&measured(0.5), None), expected);
    }

    #[test]
    fn a_comparison_says_what_else_differs() {
        let (now, mut before) = (measured(0.5), measured(2.0));
        before.parts.pop();
        before.threads = 4;
        before.budget_bytes = Some(100 << 20);
        let text = text(&now, Some(&before));
        assert!(text.contains("| step | 500 ms | 250 ms | 1.00 s | 25.0 | 50 % | 0.25 |\n"), "{text}");
        assert!(text.contains("| image | 500 ms | 250 ms | 1.00 s |  |  | |\n"), "{text}");
        assert!(
            text.ends_with("the earlier measurement differs in threads (4), budget (100 MiB)\n"),
            "{text}"
        );
        assert_eq!(ratios(&now, &before), [("step".into(), json!(0.25)), ("image".into(), json!(null))]);
    }

    #[test]
    fn times_have_three_digits() {
        let times = [1234.5, 12.34, 1.234, 0.1234, 0.01234, 0.001234].map(time);
        assert_eq!(times, ["1234 s", "12.3 s", "1.23 s", "123 ms", "12.3 ms", "1.23 ms"]);
    }
}
