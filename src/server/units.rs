//! ControlNet units of A1111's API, as its extension's clients send them, read as control images of a recipe. It knows nothing
//! of replies.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::reply::Problem;
use crate::control::{Annotator, Mode, Steering};
use crate::image_file::{Init, Resize};
use crate::recipe::{ControlImage, Image, Recipe};

/// The extension's name among A1111's scripts.
pub(super) const NAME: &str = "controlnet";
/// What makes control images of ordinary ones.
pub(super) const MODULES: [&str; 2] = ["none", "canny"];
/// What clients always send, and what has no effect here: images are annotated at the size of the result.
const WITHOUT_EFFECT: [&str; 6] =
    ["pixel_perfect", "processor_res", "low_vram", "lowvram", "save_detected_map", "is_ui"];

/// Puts the units of a request into its recipe. `kinds` are the control networks that there are; what is not done as asked is told
/// in `warnings`.
///
/// # Errors
/// A problem that names the unit and its field.
pub(super) fn read(
    units: &[Value],
    kinds: &[String],
    recipe: &mut Recipe,
    warnings: &mut Vec<String>,
) -> Result<(), Problem> {
    for (index, unit) in units.iter().enumerate() {
        let place = format!("alwayson_scripts: {NAME}: args[{index}]");
        let unit = match unit {
            Value::Object(unit) => unit.clone(),
            Value::Bool(false) | Value::Null => continue,
            _ => return Err(Problem::field(&place, "expected an object, got another value")),
        };
        if unit.get("enabled").is_some_and(|enabled| *enabled == false) {
            continue;
        }
        if kinds.is_empty() {
            warnings.push(format!("{place}: not used; the server was started without a control model"));
            continue;
        }
        let mut said = Vec::new();
        let read = one(unit, kinds, recipe, &mut said);
        warnings.extend(said.into_iter().map(|warning| format!("{place}: {warning}")));
        recipe.control.extend(read.map_err(|problem| problem.within(&place))?);
    }
    Ok(())
}

/// The control image of a unit, if it has a network.
fn one(
    unit: Map<String, Value>,
    kinds: &[String],
    recipe: &mut Recipe,
    warnings: &mut Vec<String>,
) -> Result<Option<ControlImage>, Problem> {
    let mut fields = Fields::of(unit);
    let image = image(&mut fields, recipe)?;
    let Some(kind) = kind(&mut fields, kinds)? else {
        warnings.push("model: none; not used".into());
        return Ok(None);
    };
    let annotate = annotator(&mut fields)?;
    let usual = Steering::default();
    let steering = Steering {
        weight: fields.number(&["weight"])?.unwrap_or(usual.weight),
        start: fields.number(&["guidance_start"])?.unwrap_or(usual.start),
        end: fields.number(&["guidance_end", "guidance"])?.unwrap_or(usual.end),
        mode: mode(&mut fields)?,
    };
    if let Some(resize) = resize(&mut fields)? {
        let used = *recipe.resize.get_or_insert(resize);
        if used != resize {
            warnings.push(format!(
                "resize_mode: {resize} is not used; all images of a request are resized by {used}"
            ));
        }
    }
    let passes = fields.text(&["hr_option"])?.unwrap_or_default();
    if recipe.hires.is_some()
        && !["", "0", "both", "hiresfixoption.both"].contains(&passes.to_lowercase().as_str())
    {
        warnings.push("hr_option: not supported; both passes are steered".into());
    }
    fields.take(&["enabled"]);
    WITHOUT_EFFECT.iter().for_each(|name| drop(fields.take(&[name])));
    warnings.extend(fields.rest());
    Ok(Some(ControlImage { kind, image, annotate, steering: steering.checked()? }))
}

/// The unit's image, alone or beside a mask; that of img2img where there is none.
fn image(fields: &mut Fields, recipe: &Recipe) -> Result<Image<Init>, Problem> {
    const NAMES: [&str; 2] = ["image", "input_image"];
    if let Some((name, Value::Object(mut pair))) = fields.take_if(&NAMES, Value::is_object) {
        pair.retain(|key, value| key != "mask" || !value.is_null());
        fields.put("mask", pair.remove("mask"));
        fields.put(&name, pair.remove("image"));
    }
    match (fields.image(&NAMES)?, &recipe.init) {
        (Some(image), _) => Ok(Image::Given(Init::from(image))),
        (None, Some(init)) => Ok(init.clone()),
        (None, None) => Err(Problem::field("image", "expected an image, got none")),
    }
}

/// The network that is meant, in whatever case and with or without a hash, as `canny [d14c016b]`; `None` for none.
fn kind(fields: &mut Fields, kinds: &[String]) -> Result<Option<String>, Problem> {
    let Some(name) = fields.text(&["model"])?.filter(|name| !name.is_empty()) else { return Ok(None) };
    let asked = name.split(" [").next().unwrap_or_default();
    match kinds.iter().find(|kind| kind.eq_ignore_ascii_case(asked)) {
        Some(kind) => Ok(Some(kind.clone())),
        None if asked.eq_ignore_ascii_case("none") => Ok(None),
        None => Err(Problem::field("model", format!("expected one of {}, got {name}", kinds.join(", ")))),
    }
}

fn annotator(fields: &mut Fields) -> Result<Option<Annotator>, Problem> {
    let module = fields.text(&["module", "preprocessor"])?.unwrap_or_default().to_lowercase();
    let thresholds = [fields.number::<f64>(&["threshold_a"])?, fields.number::<f64>(&["threshold_b"])?];
    match module.as_str() {
        "" | "none" => Ok(None),
        "canny" => {
            // What is below 0 is the usual one, and they are sorted, as OpenCV does.
            let mut thresholds = thresholds.map(|threshold| threshold.filter(|threshold| *threshold >= 0.0));
            if let [Some(low), Some(high)] = &mut thresholds
                && low > high
            {
                std::mem::swap(low, high);
            }
            let usual: Annotator = "canny".parse()?;
            let Annotator::Canny { low, high } = usual;
            let [low, high] =
                [(thresholds[0], low), (thresholds[1], high)].map(|(asked, usual)| match asked {
                    Some(asked) => format!("{asked:.0}"),
                    None => usual.to_string(),
                });
            Ok(Some(format!("canny,{low},{high}").parse()?))
        }
        _ => Err(Problem::field("module", format!("expected one of {}, got {module}", MODULES.join(", ")))),
    }
}

/// By its number, or by the name that the page shows.
fn mode(fields: &mut Fields) -> Result<Mode, Problem> {
    const NAMES: [(&str, Mode); 3] = [
        ("balanced", Mode::Balanced),
        ("my prompt is more important", Mode::Prompt),
        ("controlnet is more important", Mode::Control),
    ];
    let Some(text) = fields.text(&["control_mode"])? else { return Ok(Mode::default()) };
    numbered(&text, &NAMES).ok_or_else(|| {
        let names = NAMES.map(|(name, _)| name).join(", ");
        Problem::field("control_mode", format!("expected 0 to 2 or one of {names}, got {text}"))
    })
}

fn resize(fields: &mut Fields) -> Result<Option<Resize>, Problem> {
    const NAMES: [(&str, Resize); 7] = [
        ("just resize", Resize::Stretch),
        ("crop and resize", Resize::Crop),
        ("resize and fill", Resize::Pad),
        // Names of older versions.
        ("inner fit (scale to fit)", Resize::Crop),
        ("outer fit (shrink to fit)", Resize::Pad),
        ("scale to fit (inner fit)", Resize::Crop),
        ("envelope (outer fit)", Resize::Pad),
    ];
    let Some(text) = fields.text(&["resize_mode"])? else { return Ok(None) };
    numbered(&text, &NAMES).map(Some).ok_or_else(|| {
        let names = NAMES.map(|(name, _)| name)[..3].join(", ");
        Problem::field("resize_mode", format!("expected 0 to 2 or one of {names}, got {text}"))
    })
}

/// What has this name, or one of the first three by its number.
fn numbered<T: Copy>(text: &str, names: &[(&str, T)]) -> Option<T> {
    let by_number = text.parse::<f64>().ok().filter(|number| [0.0, 1.0, 2.0].contains(number));
    match by_number {
        Some(number) => names.get(number as usize).map(|(_, value)| *value),
        None => names.iter().find(|(name, _)| *name == text.to_lowercase()).map(|(_, value)| *value),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;
    use crate::image_file::{OutputFormat, encode};

    fn png() -> String {
        let mut bytes = Vec::new();
        encode(&image::RgbImage::new(8, 8), OutputFormat::Png, None, &mut bytes).unwrap();
        STANDARD.encode(bytes)
    }

    fn units(units: &Value) -> Result<(Recipe, Vec<String>), Problem> {
        let (mut recipe, mut warnings) = (Recipe::default(), Vec::new());
        let kinds = ["canny", "depth"].map(str::to_owned);
        read(units.as_array().unwrap(), &kinds, &mut recipe, &mut warnings)?;
        Ok((recipe, warnings))
    }

    #[test]
    fn units_are_read_as_clients_write_them() {
        // As webuiapi sends it.
        let webuiapi = json!({
            "image": png(), "mask": null, "module": "canny", "model": "Canny [d14c016b]", "weight": 0.5,
            "resize_mode": "Resize and Fill", "low_vram": false, "processor_res": 512, "threshold_a": 64, "threshold_b": 32,
            "guidance_start": 0.1, "guidance_end": 0.9, "control_mode": 2, "pixel_perfect": false, "hr_option": "Both",
            "enabled": true,
        });
        // As the page sends it.
        let page = json!({
            "image": { "image": format!("data:image/png;base64,{}", png()), "mask": null }, "model": "depth",
            "control_mode": "My prompt is more important", "resize_mode": 2.0, "threshold_a": -1, "module": "None",
        });
        let (recipe, warnings) =
            units(&json!([webuiapi, false, { "enabled": false, "model": "other" }, page])).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let [first, second] = &recipe.control[..] else { panic!("{:?}", recipe.control) };
        assert_eq!((first.kind.as_str(), second.kind.as_str()), ("canny", "depth"));
        let steering = Steering { weight: 0.5, start: 0.1, end: 0.9, mode: Mode::Control };
        assert_eq!(
            (first.steering, first.annotate),
            (steering, Some(Annotator::Canny { low: 32, high: 64 }))
        );
        let steering = Steering { mode: Mode::Prompt, ..Steering::default() };
        assert_eq!((second.steering, second.annotate), (steering, None));
        assert_eq!(recipe.resize, Some(Resize::Pad));
        let usual = json!([{ "image": png(), "model": "canny", "module": "canny", "threshold_a": -1, "threshold_b": -1 }]);
        let (recipe, _) = units(&usual).unwrap();
        assert_eq!(recipe.control[0].annotate, Some(Annotator::Canny { low: 100, high: 200 }));
    }

    #[test]
    fn what_is_not_done_is_told_and_what_cannot_be_is_refused() {
        let told = json!([
            { "image": png(), "model": "None" },
            { "image": { "image": png(), "mask": png() }, "model": "depth", "resize_mode": 1, "effective_region_mask": "x" },
            { "image": png(), "model": "depth", "resize_mode": 0 },
        ]);
        let (recipe, warnings) = units(&told).unwrap();
        assert_eq!(recipe.control.len(), 2);
        let expected = [
            "alwayson_scripts: controlnet: args[0]: model: none; not used",
            "alwayson_scripts: controlnet: args[1]: fields that are not used: effective_region_mask, mask",
            "alwayson_scripts: controlnet: args[2]: resize_mode: stretch is not used; all images of a request are resized by crop",
        ];
        assert_eq!(warnings, expected);
        for (unit, expected) in [
            (json!({ "image": png(), "model": "pose" }), "model: expected one of canny, depth, got pose"),
            (json!({ "model": "canny" }), "image: expected an image, got none"),
            (json!({ "image": "%", "model": "canny" }), "image: "),
            (
                json!({ "image": png(), "model": "canny", "module": "openpose" }),
                "module: expected one of none, canny",
            ),
            (
                json!({ "image": png(), "model": "canny", "module": "canny", "threshold_a": 1e9 }),
                "annotate: expected",
            ),
            (json!({ "image": png(), "model": "canny", "control_mode": 3 }), "control_mode: expected 0 to 2"),
            (
                json!({ "image": png(), "model": "canny", "resize_mode": "fit" }),
                "resize_mode: expected 0 to 2",
            ),
            (json!({ "image": png(), "model": "canny", "weight": 99 }), "control: weight"),
            (json!({ "image": png(), "model": "canny", "weight": "much" }), "weight: expected a number"),
            (
                json!({ "image": png(), "model": "canny", "guidance_start": 1, "guidance_end": 0 }),
                "control: start",
            ),
            (json!(3), "expected an object"),
        ] {
            let problem = units(&json!([unit])).map(drop).expect_err(expected);
            let message = problem.json()["detail"].as_str().unwrap().to_owned();
            let place = "alwayson_scripts: controlnet: args[0]: ";
            assert!(message.starts_with(&format!("{place}{expected}")), "{message}");
        }
    }
}
