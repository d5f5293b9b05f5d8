//! Keyword arguments become recipes: the names of recipes, and those that diffusers has for the same. What a value may be, the reader
//! of recipes says.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::images;
use crate::image_file::ImageFile;
use crate::name::nearest;
use crate::recipe::{Image, Receipt, Recipe};

/// Names of diffusers, and those of recipes.
const ALIASES: [(&str, &str); 6] = [
    ("guidance_scale", "guidance"),
    ("image", "init"),
    ("image_guidance_scale", "image_guidance"),
    ("mask_image", "mask"),
    ("negative_prompt", "negative"),
    ("num_inference_steps", "steps"),
];
/// Names that are no fields of a recipe by themselves.
const OTHERS: [&str; 5] = ["callback_on_step_end", "height", "num_images_per_prompt", "recipe", "width"];
/// Names of diffusers for what is given otherwise here.
const ABSENT: [(&str, &str); 4] = [
    ("callback", "callback_on_step_end"),
    ("generator", "seed: its noise is that of torch.Generator(\"cpu\").manual_seed(seed)"),
    ("latents", "seed"),
    ("scheduler", "sampler and schedule"),
];

/// The recipe of a call: what `recipe` has, a dict, and in place of its fields those that are given by name.
pub(super) fn recipe(
    prompt: Option<&Bound<'_, PyAny>>,
    given: Option<&Bound<'_, PyDict>>,
    py: Python<'_>,
) -> PyResult<Recipe> {
    let fields = PyDict::new(py);
    if let Some(given) = given {
        if let Some(base) = given.get_item("recipe")?.filter(|base| !base.is_none()) {
            let base = base.cast::<PyDict>().map_err(|_| PyTypeError::new_err("recipe: expected a dict"))?;
            fields.update(base.as_mapping())?;
        }
        for (name, value) in given {
            let name: String = name.extract()?;
            let field = field_of(&name)?;
            if !value.is_none() && !OTHERS.contains(&field) {
                if field != name && given.contains(field)? {
                    return Err(PyTypeError::new_err(format!("expected {name} or {field}, got both")));
                }
                fields.set_item(field, value)?;
            }
        }
        if let Some(size) = size(given)? {
            fields.set_item("size", size)?;
        }
    }
    if let Some(prompt) = prompt {
        fields.set_item("prompt", prompt)?;
    }
    parse(&fields)
}

/// The fields of a recipe by their own names.
pub(super) fn parse(fields: &Bound<'_, PyDict>) -> PyResult<Recipe> {
    let (init, mask) = (take_image(fields, "init")?, take_image(fields, "mask")?);
    let controls = take_controls(fields)?;
    if !fields.contains("version")? {
        fields.set_item("version", crate::recipe::VERSION)?;
    }
    let py = fields.py();
    let options = PyDict::new(py);
    options.set_item("allow_nan", false)?;
    options.set_item("default", py.import("os")?.getattr("fspath")?)?;
    let json: String = py.import("json")?.call_method("dumps", (fields,), Some(&options))?.extract()?;
    let mut recipe = Receipt::parse("recipe", json.as_bytes())?.recipe;
    if let Some(init) = init {
        recipe.init = Some(init.into());
    }
    if let Some(mask) = mask {
        recipe.mask = Some(mask.into());
    }
    for (control, image) in recipe.control.iter_mut().zip(controls) {
        if let Some(image) = image {
            control.image = Image::from(image);
        }
    }
    Ok(recipe)
}

/// The field of a recipe that a name is for, or the name itself where there is another use of it.
fn field_of(name: &str) -> PyResult<&str> {
    if let Some((_, field)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Ok(field);
    }
    if Recipe::fields().contains(&name) || OTHERS.contains(&name) {
        return Ok(name);
    }
    let otherwise = ABSENT.iter().find(|(absent, _)| *absent == name).map(|(_, otherwise)| *otherwise);
    Err(unknown(name, otherwise))
}

/// The error for a name that nothing has, with what to give in place of it.
fn unknown(name: &str, otherwise: Option<&str>) -> PyErr {
    let known = ALIASES.iter().map(|(alias, _)| *alias).chain(OTHERS).chain(Recipe::fields().iter().copied());
    let help = match (otherwise, nearest(name, known)) {
        (Some(otherwise), _) => format!("; give {otherwise}"),
        (None, Some(near)) => format!("; did you mean {near}?"),
        (None, None) => String::new(),
    };
    PyTypeError::new_err(format!("expected the name of a setting, got {name:?}{help}"))
}

/// The size that `width` and `height` give together.
fn size(given: &Bound<'_, PyDict>) -> PyResult<Option<String>> {
    let side = |name: &str| given.get_item(name).map(|side| side.filter(|side| !side.is_none()));
    match (side("width")?, side("height")?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) if given.contains("size")? => {
            Err(PyTypeError::new_err("expected size, or width and height, got all of them"))
        }
        (Some(width), Some(height)) => {
            let side = |name: &str, side: Bound<'_, PyAny>| {
                side.extract::<u32>().map_err(|error| {
                    PyTypeError::new_err(format!("{name}: expected a number of pixels: {error}"))
                })
            };
            Ok(Some(format!("{}x{}", side("width", width)?, side("height", height)?)))
        }
        _ => Err(PyTypeError::new_err("expected width and height, got one of them")),
    }
}

/// Takes an image in memory out of the fields; a path stays.
fn take_image(fields: &Bound<'_, PyDict>, name: &str) -> PyResult<Option<ImageFile>> {
    let Some(given) = fields.get_item(name)?.filter(images::is_image) else { return Ok(None) };
    fields.del_item(name)?;
    images::file(name, &given).map(Some)
}

/// Takes the images in memory out of the control images, which are dicts with `image` in place of `path`.
fn take_controls(fields: &Bound<'_, PyDict>) -> PyResult<Vec<Option<ImageFile>>> {
    let Some(given) = fields.get_item("control")? else { return Ok(Vec::new()) };
    let Ok(given) = given.cast::<PyList>() else { return Ok(Vec::new()) };
    let (mut images, without) = (Vec::new(), PyList::empty(fields.py()));
    for control in given {
        let mut image = None;
        let control = match control.cast::<PyDict>() {
            Ok(control) => {
                let control = control.copy()?;
                image = take_image(&control, "image")?;
                control.into_any()
            }
            Err(_) => control,
        };
        without.append(control)?;
        images.push(image);
    }
    fields.set_item("control", without)?;
    Ok(images)
}
