//! `--sampler help` and `--schedule help`: tables of what there is. It knows how they look, and nothing of what they do.

use calotype::sampler::{About, AnySetting, SamplerKind};
use calotype::schedule::ScheduleKind;
use serde_json::{Value, json};

use super::Report;

/// A line per sampling method.
pub(super) fn report() -> Report {
    let json = SamplerKind::ALL.map(|kind| {
        let about = kind.about();
        json!({
            "name": about.name,
            "evaluations": about.evaluations,
            "order": about.order,
            "stochastic": about.is_stochastic,
            "flow_matching": about.is_slope,
            "models": about.models,
            "settings": names(about),
            "diffusers": name(about.diffusers),
            "a1111": name(about.a1111),
            "comfyui": name(about.comfyui),
            "stable-diffusion.cpp": name(about.sd_cpp),
        })
    });
    let settings = uses().into_iter().map(|Use { setting, samplers }| {
        json!({
            "name": setting.name(),
            "values": setting.expected(),
            "default": setting.default().to_string(),
            "meaning": setting.help(),
            "samplers": samplers,
        })
    });
    let settings: Vec<Value> = settings.collect();
    Report::new(
        format!("{}\n{}", table(), settings_table()),
        json!({ "samplers": json, "settings": settings }),
    )
}

/// A setting with one default, and the samplers that have it so.
struct Use {
    setting: &'static dyn AnySetting,
    samplers: Vec<&'static str>,
}

/// Every setting, in the order in which samplers have them.
fn uses() -> Vec<Use> {
    let mut uses: Vec<Use> = Vec::new();
    let about =
        |setting: &dyn AnySetting| (setting.name(), setting.expected(), setting.default().to_string());
    for kind in SamplerKind::ALL {
        for &setting in kind.about().settings() {
            let same = uses.iter_mut().find(|known| about(known.setting) == about(setting));
            match same {
                Some(known) => known.samplers.push(kind.about().name),
                None => uses.push(Use { setting, samplers: vec![kind.about().name] }),
            }
        }
    }
    uses.sort_by_key(|known| known.setting.name());
    uses
}

fn settings_table() -> String {
    let rows = uses().into_iter().map(|Use { setting, samplers }| {
        let (default, values) = (setting.default().to_string(), setting.expected());
        [setting.name().to_owned(), default, values, samplers.join(", "), setting.help().to_owned()]
    });
    markdown(["setting", "default", "values", "samplers", "meaning"], &rows.collect::<Vec<_>>())
}

/// A line per schedule.
pub(super) fn report_schedules() -> Report {
    let json: Vec<Value> = ScheduleKind::about()
        .map(
            |(name, settings, aliases)| json!({ "name": name, "settings": settings, "other_names": aliases }),
        )
        .collect();
    Report::new(schedules(), json!({ "schedules": json }))
}

fn schedules() -> String {
    let rows = ScheduleKind::about()
        .map(|(name, settings, aliases)| [name.to_owned(), settings, aliases.join(", ")])
        .collect::<Vec<_>>();
    markdown(["name", "settings", "other names"], &rows)
}

/// The names of a sampler's settings.
fn names(about: &About) -> Vec<&'static str> {
    about.settings().iter().map(|setting| setting.name()).collect()
}

fn name(name: &str) -> Value {
    if name.is_empty() { Value::Null } else { name.into() }
}

/// The table in Markdown, which the manual has, too.
fn table() -> String {
    const HEAD: [&str; 10] = [
        "name",
        "calls a step",
        "order",
        "noise",
        "models",
        "settings",
        "diffusers",
        "A1111",
        "ComfyUI",
        "stable-diffusion.cpp",
    ];
    let row = |about: &About| -> [String; 10] {
        let order = if about.order == 0 { "-".into() } else { about.order.to_string() };
        let noise = if about.is_stochastic { "fresh" } else { "none" };
        let models = if about.is_slope { "any, flow matching" } else { about.models };
        [
            about.name.into(),
            about.evaluations.to_string(),
            order,
            noise.into(),
            models.into(),
            names(about).join(", "),
            about.diffusers.into(),
            about.a1111.into(),
            about.comfyui.into(),
            about.sd_cpp.into(),
        ]
    };
    markdown(HEAD, &SamplerKind::ALL.map(|kind| row(kind.about())))
}

fn markdown<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].len()).chain([head[column].len()]).max().unwrap_or(0)
    });
    let line = |cells: [&str; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} "));
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let rule = widths.map(|width| "-".repeat(width));
    let mut table = line(head) + &line(rule.each_ref().map(String::as_str));
    table.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_the_tables() {
        let manual = include_str!("../manual/samplers.md");
        for table in [table(), settings_table(), schedules()] {
            assert!(manual.contains(&table), "src/manual/samplers.md: expected this table:\n{table}");
        }
    }
}
