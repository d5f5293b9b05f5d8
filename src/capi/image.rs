//! Finished images of the C library, with their receipts.

use std::ffi::{CString, c_char, c_int};

use super::handle::{Handle, borrow, check_out, expect_mut, free, path, write};
use super::option::calotype_pixels;
use super::status::{calotype_error, guard};
use crate::binding;

/// A finished image, and its receipt. It belongs to the caller, does not change, may be used by several threads at once, and outlives its
/// pipeline.
pub struct calotype_image(());

/// What is behind it.
pub(super) struct Finished {
    pub(super) finished: binding::Finished,
    /// That of the image, as C reads texts.
    pub(super) receipt: CString,
}

impl Handle for Finished {
    type Opaque = calotype_image;
    const MARK: u64 = u64::from_le_bytes(*b"caloimg1");
    const NAME: &'static str = "image";
}

/// Its pixels. They are the image's: copy what is needed after it is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_image_pixels(
    image: *const calotype_image,
    pixels: *mut calotype_pixels,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let image = borrow::<Finished>(image)?;
            let pixels = check_out("pixels", pixels)?;
            write(pixels, &calotype_pixels::of(&image.finished.image));
        }
        Ok(())
    })
}

/// Its receipt, as JSON: the recipe with nothing left to defaults, and what made the image. It is the image's, and a recipe for
/// calotype_pipeline_generate, which makes the same image again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_image_receipt(
    image: *const calotype_image,
    json: *mut *const c_char,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let image = borrow::<Finished>(image)?;
            *expect_mut("json", json)? = image.receipt.as_ptr();
        }
        Ok(())
    })
}

/// Writes it with its receipt: PNG, JPEG (.jpg) or WebP (.webp) by the extension, PNG without one. The file is there whole or not at all,
/// whatever happens meanwhile; what was there before stays until then. A folder or a device is refused, and a receipt that is too long
/// for the format.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_image_write(
    image: *const calotype_image,
    file: *const c_char,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        let (finished, file) = unsafe { (borrow::<Finished>(image)?, path("file", file)?) };
        finished.finished.write(&file)
    })
}

/// Frees it, and makes the variable NULL; nothing where it is NULL. Returns CALOTYPE_USAGE for what is no image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_image_free(image: *mut *mut calotype_image) -> c_int {
    // SAFETY: the caller's pointer, which is checked as far as can be.
    guard(std::ptr::null_mut(), || unsafe { free::<Finished>(image, |_| Ok(())) })
}
