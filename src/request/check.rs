//! Whether the images of a recipe, and the settings that go with them, are what a model draws from. It knows no pixels.

use crate::control::Mode;
use crate::image_file::{Init, Mask, Resize};
use crate::manifest::{Conditions, Manifest};
use crate::recipe::{HiresUpscaler, Recipe};
use crate::tensor::PixelSize;
use crate::{Error, ErrorKind};

fn refuse(message: &str, help: &str) -> Result<(), Error> {
    let error = Error::new(ErrorKind::Usage, message);
    Err(if help.is_empty() { error } else { error.help(help) })
}

/// What a model does with images, for messages.
fn verb(conditions: Conditions) -> &'static str {
    match conditions {
        Conditions::Prompt => "draws",
        Conditions::Refiner => "refines",
        Conditions::Inpainting => "repaints",
        Conditions::Editing => "edits",
        Conditions::Upscaling => "upscales",
    }
}

/// Whether a run starts from the init image, and not from noise.
fn is_started_from(conditions: Conditions) -> bool {
    !matches!(conditions, Conditions::Editing | Conditions::Upscaling)
}

/// [`ErrorKind::Usage`] for images and settings of a recipe that its model does not draw from.
pub(super) fn check_images(
    recipe: &Recipe,
    init: Option<&Init>,
    mask: Option<&Mask>,
    manifest: &Manifest,
) -> Result<(), Error> {
    check_given(recipe, init, mask, manifest.conditions)?;
    if init.is_some() && !manifest.encodes && manifest.conditions != Conditions::Upscaling {
        return refuse(
            "init: expected none, because this model's files have no VAE encoder, got one",
            "use the model in a form that has it, such as its diffusers folder",
        );
    }
    check_hires(recipe, init.is_some(), manifest)?;
    check_mask_settings(recipe)?;
    check_resize(recipe)?;
    check_settings(recipe, manifest.conditions)
}

/// Whether a second pass is one that the model can take.
fn check_hires(recipe: &Recipe, has_init: bool, manifest: &Manifest) -> Result<(), Error> {
    let Some(hires) = recipe.hires else { return Ok(()) };
    if manifest.conditions != Conditions::Prompt {
        let verb = verb(manifest.conditions);
        let message = format!("hires: expected none, because this model {verb} images, got one");
        return refuse(&message, "");
    }
    if has_init {
        return refuse(
            "hires: expected no init image, because the first pass starts from noise, got one",
            "an init image is enlarged with {size}",
        );
    }
    if hires.upscaler == HiresUpscaler::Pixel && !manifest.encodes {
        return refuse(
            "hires: expected the upscaler latent, because this model's files have no VAE encoder, got pixel",
            "use the model in a form that has it, such as its diffusers folder",
        );
    }
    Ok(())
}

/// The most control images of one request.
const MAX_CONTROLS: usize = 8;

/// [`ErrorKind::Usage`] for control images that no network of the model is for, and for networks without one.
pub(super) fn check_controls(recipe: &Recipe, images: &[Init], manifest: &Manifest) -> Result<(), Error> {
    if recipe.control.len() > MAX_CONTROLS {
        let message = format!("control: expected at most {MAX_CONTROLS}, got {}", recipe.control.len());
        return refuse(&message, "");
    }
    for (control, image) in recipe.control.iter().zip(images) {
        let kind = &control.kind;
        control.steering.checked()?;
        if [image.dimensions().0, image.dimensions().1].contains(&0) {
            return refuse(&format!("control: {kind}: expected an image with pixels, got none"), "");
        }
        let Some(network) = manifest.controls.iter().find(|network| network.name == *kind) else {
            let had = match &manifest.controls[..] {
                [] => "none".to_owned(),
                kinds => kinds.iter().map(|kind| &kind.name[..]).collect::<Vec<_>>().join(", "),
            };
            let message = format!("control: {kind}: expected a control model of this kind, got {had}");
            return refuse(&message, &format!("give one with {{control_model}} {kind}=FILE"));
        };
        if network.adapter_px.is_some() && control.steering.mode == Mode::Guess {
            return refuse(
                &format!("control: {kind}: mode: expected balanced, prompt or control, got guess"),
                "it is a T2I-Adapter, for which no guess mode is defined",
            );
        }
    }
    if let Some(idle) =
        recipe.control_model.iter().find(|model| recipe.control.iter().all(|image| image.kind != model.kind))
    {
        let kind = &idle.kind;
        let message = format!("control model: {kind}: expected a control image of this kind, got none");
        return refuse(&message, &format!("give one with {{control}} {kind}=IMAGE"));
    }
    let others = [(recipe.mask_only.is_some(), "mask only"), (recipe.extend.is_some(), "extend")];
    if let Some((_, what)) = others.into_iter().find(|(is_given, _)| *is_given && !images.is_empty()) {
        let message = format!("{what}: expected none with a control image, got one");
        return refuse(&message, "");
    }
    Ok(())
}

/// [`ErrorKind::Usage`] for a size of which a T2I-Adapter's steps are no whole part.
pub(super) fn check_adapters(recipe: &Recipe, size: PixelSize, manifest: &Manifest) -> Result<(), Error> {
    for network in &manifest.controls {
        let is_used = recipe.control.iter().any(|control| control.kind == network.name);
        let Some(px) = network.adapter_px.filter(|_| is_used) else { continue };
        let (width, height) = (size.width_px(), size.height_px());
        if !width.is_multiple_of(px) || !height.is_multiple_of(px) {
            let near = |side_px: u32| side_px.next_multiple_of(px);
            let kind = &network.name;
            let message =
                format!("size: expected multiples of {px} pixels for the T2I-Adapter {kind}, got {size}");
            return refuse(&message, &format!("try {}x{}", near(width), near(height)));
        }
    }
    Ok(())
}

/// Whether those images are there that the model needs, and no others.
fn check_given(
    recipe: &Recipe,
    init: Option<&Init>,
    mask: Option<&Mask>,
    conditions: Conditions,
) -> Result<(), Error> {
    let verb = verb(conditions);
    let is_started_from = is_started_from(conditions);
    let needs_init = conditions != Conditions::Prompt;
    match (init, mask) {
        (None, Some(_)) => {
            return refuse(
                "mask: expected an init image with it, got none",
                "give its init image with {init}",
            );
        }
        (None, None) if needs_init => {
            let message = format!("init: expected an image, because this model {verb} images, got none");
            return refuse(&message, "give one with {init}");
        }
        (Some(init), _) if [init.dimensions().0, init.dimensions().1].contains(&0) => {
            return refuse("init: expected an image with pixels, got none", "");
        }
        (None, _) if recipe.extend.is_some() => {
            return refuse("extend: expected an init image, got none", "give one with {init}");
        }
        (Some(_), _) if recipe.extend.is_some() && !is_started_from => {
            let message = format!("extend: expected none, because this model {verb} whole images, got one");
            return refuse(&message, "");
        }
        (Some(_), Some(_)) if recipe.extend.is_some() => {
            return refuse("extend: expected no mask, because the mask is what is added, got one", "");
        }
        (Some(_), None) if recipe.extend.is_some_and(|extend| extend.is_nothing()) => {
            return refuse("extend: expected a side of more than 0 pixels, got none", "as in left=64,top=32");
        }
        (Some(_), None) if conditions == Conditions::Inpainting && recipe.extend.is_none() => {
            return refuse(
                "mask: expected one, because this model repaints a part of an image, got none",
                "give one with {mask}: white areas are repainted",
            );
        }
        (Some(_), Some(_)) if !is_started_from => {
            let message = format!("mask: expected none, because this model {verb} whole images, got one");
            return refuse(&message, "");
        }
        (Some(init), Some(mask)) => check_mask_size(recipe, init, mask)?,
        _ => {}
    }
    Ok(())
}

fn check_mask_size(recipe: &Recipe, init: &Init, mask: &Mask) -> Result<(), Error> {
    let of_mask = match mask {
        Mask::Pixels(mask) => mask.dimensions(),
        Mask::File(file) => file.dimensions(),
        Mask::InitAlpha => init.dimensions(),
    };
    if [of_mask.0, of_mask.1].contains(&0) {
        return refuse("mask: expected an image with pixels, got none", "");
    }
    if init.dimensions() != of_mask && recipe.mask_fit.is_none() {
        let shown = |(width, height): (u32, u32)| format!("{width}x{height}");
        let (init, mask) = (shown(init.dimensions()), shown(of_mask));
        let message = format!("mask: expected the size of the init image, {init}, got {mask}");
        return refuse(&message, "{mask_fit} stretch or crop fits it");
    }
    Ok(())
}

fn check_mask_settings(recipe: &Recipe) -> Result<(), Error> {
    let of_mask = [
        (recipe.keep_outside.is_some() && recipe.extend.is_none(), "keep outside"),
        (recipe.mask_fit.is_some(), "mask fit"),
        (recipe.mask_invert.is_some(), "mask invert"),
        (recipe.mask_grow.is_some(), "mask grow"),
        (recipe.mask_blur.is_some(), "mask blur"),
        (recipe.mask_only.is_some(), "mask only"),
        (recipe.soft_mask.is_some(), "soft mask"),
    ];
    if let Some((_, what)) = of_mask.into_iter().find(|(is_given, _)| *is_given && recipe.mask.is_none()) {
        return refuse(&format!("{what}: expected a mask, got none"), "give one with {mask}");
    }
    if recipe.mask_fit == Some(Resize::Pad) {
        return refuse("mask fit: expected stretch or crop, got pad", "");
    }
    Ok(())
}

fn check_resize(recipe: &Recipe) -> Result<(), Error> {
    if recipe.resize.is_some() && recipe.init.is_none() && recipe.control.is_empty() {
        return refuse("resize: expected an init image, got none", "give one with {init}");
    }
    if recipe.resize.is_some() && recipe.extend.is_some() {
        return refuse(
            "resize: expected none with an extended image, whose init image keeps its size, got one",
            "",
        );
    }
    if recipe.resize.is_some() && recipe.mask_only.is_some() {
        let message =
            "resize: expected none with mask only, whose region has the proportions of the size, got one";
        return refuse(message, "");
    }
    Ok(())
}

/// Whether the other settings of images are those of such a model.
fn check_settings(recipe: &Recipe, conditions: Conditions) -> Result<(), Error> {
    let (verb, is_started_from) = (verb(conditions), is_started_from(conditions));
    if recipe.soft_mask == Some(true) && conditions == Conditions::Inpainting {
        let message = "soft mask: expected none, because this model takes masks without greys, got one";
        return refuse(message, "use a model that is not trained for inpainting");
    }
    if recipe.strength.is_some() && recipe.init.is_none() {
        return refuse("strength: expected an init image, got none", "give one with {init}");
    }
    if recipe.strength.is_some() && !is_started_from {
        let message =
            format!("strength: expected none, because this model {verb} images from noise, got one");
        return refuse(&message, "");
    }
    if recipe.image_guidance.is_some() && conditions != Conditions::Editing {
        return refuse(
            "image guidance: expected none, because this model does not edit images, got one",
            "other models use strength instead",
        );
    }
    if recipe.noise_level.is_some() && conditions != Conditions::Upscaling {
        return refuse(
            "noise level: expected none, because this model does not upscale images, got one",
            "other models use strength instead",
        );
    }
    Ok(())
}
