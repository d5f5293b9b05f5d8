//! The HTTP server on the built-in model: what clients send and read, and what hostile ones do.

#![cfg(all(feature = "server", feature = "builtin"))]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use calotype::engine::{Library, SessionOptions};
use calotype::image_file::{ImageFile, OutputFormat, Texts, encode};
use calotype::model::Model;
use calotype::pipeline::Options;
use calotype::recipe::{Receipt, Recipe};
use calotype::server::{Config, Served, limit, serve};
use serde_json::{Value, json};

/// A server that ends with the test.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Server {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            address: "127.0.0.1:0".parse().unwrap(),
            socket: None,
            token: None,
            origins: vec!["https://listed.example".into()],
            queue: 3,
            deadline: None,
            grace: Duration::from_secs(60),
            is_strict: false,
            fixed_prompts: None,
            presets: vec!["a red apple".into()],
            idle: None,
            theme: None,
        };
        change(&mut config);
        let stop = Arc::new(AtomicBool::new(false));
        let (told, address) = mpsc::channel();
        let seen = stop.clone();
        let serving = thread::spawn(move || {
            let served = Served {
                name: "calotype-emoji-1".into(),
                model: Model::built_in().unwrap(),
                recipe: Recipe::default(),
                additions: Vec::new(),
                sha256: Arc::new(OnceLock::from("0123456789abcdef".to_owned())),
            };
            let session: SessionOptions = Options::default().session;
            let library = Library::load(None).unwrap();
            let stop = || seen.load(Ordering::Relaxed);
            serve(config, vec![served], session, None, library, stop, |address| told.send(address).unwrap())
                .unwrap();
        });
        let address = address.recv_timeout(Duration::from_secs(60)).expect("it serves");
        Self { address, stop, serving: Some(serving) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Sends bytes as they are, and reads one reply.
    fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        // A server that refuses early may close before all is written.
        let _ = stream.write_all(request);
        Reply::read(stream)
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.raw(&self.request(method, path, headers, body))
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        [request.as_bytes(), b"\r\n", body].concat()
    }

    fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    fn post(&self, path: &str, json: &Value) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], json.to_string().as_bytes())
    }

    /// A job of a few steps.
    fn job(&self, steps: usize) -> String {
        let recipe = json!({ "version": 1, "prompt": "a red apple", "seed": 7, "steps": steps });
        let reply = self.post("/api/jobs", &json!({ "recipe": recipe }));
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    /// The job once it has ended, or is what is waited for.
    fn wait(&self, id: &str, until: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let job = self.get(&format!("/api/jobs/{id}")).json();
            if until(&job) {
                return job;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "{job}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(&self, id: &str) -> Value {
        self.wait(id, |job| !["queued", "running"].contains(&job["status"].as_str().unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.serving.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                break;
            }
            let (name, value) = line.trim().split_once(':').unwrap();
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut body = Vec::new();
        let _ = reader.read_to_end(&mut body);
        let mut reply = Self { status, headers, body };
        if reply.header("transfer-encoding") == "chunked" {
            reply.body = unchunked(&reply.body);
        }
        reply
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(400).collect()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The events of a stream: names and data.
    fn events(&self) -> Vec<(String, Value)> {
        let text = String::from_utf8(self.body.clone()).unwrap();
        let blocks = text.split("\n\n").filter_map(|block| block.split_once('\n'));
        let events = blocks
            .filter_map(|(name, data)| Some((name.strip_prefix("event: ")?, data.strip_prefix("data: ")?)));
        events.map(|(name, data)| (name.to_owned(), serde_json::from_str(data).unwrap())).collect()
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|pair| pair == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        let start = end + 2;
        whole.extend(&body[start..start + length]);
        body = &body[(start + length + 2).min(body.len())..];
    }
    whole
}

fn decode(base64: &Value) -> image::RgbImage {
    let bytes = STANDARD.decode(base64.as_str().expect("a text")).expect("base64");
    ImageFile::from_bytes("reply", bytes).unwrap().decode().unwrap()
}

/// A small PNG in base64.
fn png(width: u32, height: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 90]));
    let mut bytes = Vec::new();
    encode(&image, OutputFormat::Png, None, &mut bytes).unwrap();
    bytes
}

/// A PNG of 16384x16384 white pixels of one bit in a few kilobytes.
fn huge_png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 16384, 16384);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0xff; 16384 * 16384 / 8]).unwrap();
    writer.finish().unwrap();
    bytes
}

#[test]
fn openai_clients_get_images() {
    let server = Server::new();
    let body = json!({
        "prompt": "a red apple on a blue background", "model": "gpt-image-1", "n": 2, "seed": 7, "steps": 2,
        "quality": "high", "user": "me",
    });
    let reply = server.post("/v1/images/generations", &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("x-calotype-warnings"), "fields that are not used: quality");
    let json = reply.json();
    let images: Vec<_> =
        json["data"].as_array().unwrap().iter().map(|data| decode(&data["b64_json"])).collect();
    assert_eq!((images.len(), images[0].dimensions()), (2, (128, 128)));
    assert_ne!(images[0], images[1]);
    // The same request gives the same pixels, also in another format and by its address.
    let body = json!({
        "prompt": "a red apple on a blue background", "seed": 8, "steps": 2, "response_format": "url",
        "output_format": "webp",
    });
    let url = server.post("/v1/images/generations", &body).json()["data"][0]["url"].clone();
    let file = server.get(url.as_str().unwrap());
    assert_eq!((file.status, file.header("content-type")), (200, "image/webp"));
    assert_eq!(ImageFile::from_bytes("url", file.body).unwrap().decode().unwrap(), images[1]);
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "calotype-emoji-1");
}

#[test]
fn images_carry_receipts_that_generate_them_again() {
    let server = Server::new();
    let id = server.job(2);
    server.end(&id);
    let file = server.get(&format!("/api/jobs/{id}/image.png"));
    let texts = Texts::read("reply", &mut std::io::Cursor::new(&file.body)).unwrap().unwrap();
    let receipt = Receipt::parse("reply", texts.json.unwrap().as_bytes()).unwrap();
    assert_eq!(receipt.recipe.seed, Some(7));
    assert!(texts.parameters.unwrap().contains("Seed: 7"));
    let again = json!({ "recipe": serde_json::to_value(&receipt.recipe).unwrap() });
    let reply = server.post("/api/jobs", &again);
    assert_eq!(reply.status, 202, "{}", reply.text());
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    server.end(&id);
    assert_eq!(server.get(&format!("/api/jobs/{id}/image.png")).body, file.body);
}

/// What `generate` prints as warnings a job lists, once for all its images.
#[test]
fn jobs_list_what_is_not_done_as_asked() {
    let server = Server::new();
    let odd = "\u{1f9ff}\u{10ffff}";
    // Both have more words than are read: 32 chunks of 22.
    let long = "red ".repeat(800);
    let recipe = json!({
        "version": 1, "prompt": format!("a river {odd} {long}"), "negative": "Money", "seed": 7, "steps": 1,
        "size": "64x64",
    });
    let reply = server.post("/api/jobs", &json!({ "recipe": recipe, "count": 2 }));
    assert_eq!(reply.status, 202, "{}", reply.text());
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    let job = server.end(&id);
    let warnings: Vec<&str> =
        job["warnings"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let expected = [
        format!("prompt: words that this model does not know: {odd:?}"),
        "prompt: words that this model was not trained on: \"river\"".to_owned(),
        "negative prompt: words that this model was not trained on: \"Money\"".to_owned(),
    ];
    assert_eq!(warnings[..3], expected, "{warnings:?}");
    assert!(warnings[3].starts_with("prompt: truncated at byte "), "{warnings:?}");
    assert_eq!(warnings.len(), 4, "{warnings:?}");
}

/// A job is checked when it is accepted, seeds of all its images included, and shows its seed from then on.
#[test]
fn jobs_are_whole_requests() {
    let server = Server::new();
    let submit = |seed: Value, count: u64| {
        let recipe = json!({ "version": 1, "prompt": "a cat", "steps": 1, "size": "64x64", "seed": seed });
        server.post("/api/jobs", &json!({ "recipe": recipe, "count": count }))
    };
    let reply = submit(u64::MAX.into(), 2);
    let expected = format!("seed: expected room for 2 consecutive seeds, got {}", u64::MAX);
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert_eq!(reply.json()["error"]["message"], expected.as_str());
    let accepted = submit(Value::Null, 1).json();
    assert!(accepted["seed"].is_u64() && accepted["steps"] == 1, "{accepted}");
    let ended = server.end(accepted["id"].as_str().unwrap());
    assert_eq!(ended["seed"], accepted["seed"]);
}

#[test]
fn streams_have_partial_images() {
    let server = Server::new();
    let body = json!({ "prompt": "a cat", "stream": true, "partial_images": 2, "steps": 6, "seed": 1, "size": "128x128" });
    let reply = server.post("/v1/images/generations", &body);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    let events = reply.events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let partial = "image_generation.partial_image";
    assert_eq!(names, [partial, partial, "image_generation.completed"]);
    for (index, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["type"], name.as_str());
        assert_eq!(decode(&data["b64_json"]).dimensions(), (128, 128));
        if name == partial {
            assert_eq!(data["partial_image_index"], index);
        }
    }
}

/// A form as browsers and Python's clients send it.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, file, bytes) in parts {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        body.extend(format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--XX--\r\n");
    ("multipart/form-data; boundary=XX".into(), body)
}

#[test]
fn edits_keep_what_the_mask_keeps() {
    let server = Server::new();
    // Transparent on the left half.
    let mask =
        image::RgbaImage::from_fn(128, 128, |x, _| image::Rgba([0, 0, 0, if x < 64 { 0 } else { 255 }]));
    let mut mask_png = Vec::new();
    mask.write_to(&mut std::io::Cursor::new(&mut mask_png), image::ImageFormat::Bmp).unwrap();
    let image = png(128, 128);
    let (kind, body) = form(&[
        ("image", Some("a.png"), &image),
        ("mask", Some("b.bmp"), &mask_png),
        ("prompt", None, b"a red apple"),
        ("steps", None, b"2"),
        ("size", None, b"128x128"),
        ("seed", None, b"3"),
    ]);
    let reply = server.send("POST", "/v1/images/edits", &[("Content-Type", &kind)], &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let edited = decode(&reply.json()["data"][0]["b64_json"]);
    let before = ImageFile::from_bytes("image", image.clone()).unwrap().decode().unwrap();
    let is_same = |(x, y)| edited[(x, y)] == before[(x, y)];
    assert!((64..128).all(|x| (0..128).all(|y| is_same((x, y)))), "outside of the mask");
    assert!((0..64).any(|x| !is_same((x, 64))), "inside");
    let (kind, body) = form(&[("image", Some("a.png"), &image), ("steps", None, b"2")]);
    let reply = server.send("POST", "/v1/images/edits", &[("Content-Type", &kind)], &body);
    assert_eq!((reply.status, reply.json()["error"]["param"].clone()), (400, json!("prompt")));
    let reply = server.send("POST", "/v1/images/variations", &[("Content-Type", &kind)], &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn a1111_clients_get_images_and_info() {
    let server = Server::new();
    let body = json!({
        "prompt": "a red apple", "negative_prompt": "blurry", "steps": 3, "cfg_scale": 4, "width": 126, "height": 128,
        "seed": -1, "sampler_name": "DPM++ 2M", "scheduler": "Karras", "batch_size": 2, "n_iter": 1,
        "enable_hr": false, "hr_scale": 2, "styles": [], "tiling": false, "override_settings": {},
        "alwayson_scripts": { "ADetailer": { "args": [false] }, "controlnet": { "args": [{ "enabled": true }] } },
    });
    let reply = server.post("/sdapi/v1/txt2img", &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply = reply.json();
    assert_eq!(decode(&reply["images"][1]).dimensions(), (128, 128));
    assert_eq!(reply["parameters"]["cfg_scale"], 4);
    // LibreChat parses it, and reads this.
    let info: Value = serde_json::from_str(reply["info"].as_str().unwrap()).unwrap();
    assert_eq!((&info["width"], &info["sampler_name"]), (&json!(128), &json!("DPM++ 2M")));
    let seed = info["seed"].as_u64().unwrap();
    assert_eq!(info["all_seeds"], json!([seed, seed + 1]));
    assert!(info["infotexts"][0].as_str().unwrap().contains(&format!("Seed: {seed}")));
    let warnings = info["warnings"].to_string();
    assert!(
        warnings.contains("126x128 is rounded to 128x128") && warnings.contains("controlnet"),
        "{warnings}"
    );
    assert!(!warnings.contains("ADetailer") && !warnings.contains("hr_scale"), "{warnings}");
    // A second pass, as SillyTavern asks for it.
    let body = json!({
        "prompt": "a red apple", "steps": 2, "width": 64, "height": 64, "seed": 3, "enable_hr": true, "hr_scale": 2,
        "hr_upscaler": "4x-UltraSharp", "hr_second_pass_steps": 5, "denoising_strength": 0.6,
    });
    let second = server.post("/sdapi/v1/txt2img", &body).json();
    assert_eq!(decode(&second["images"][0]).dimensions(), (128, 128));
    let told: Value = serde_json::from_str(second["info"].as_str().unwrap()).unwrap();
    let text = told["infotexts"][0].as_str().unwrap();
    assert!(
        text.contains("Size: 64x64")
            && text.contains("Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: Lanczos"),
        "{text}"
    );
    let warnings = told["warnings"].to_string();
    assert!(warnings.contains("4x-UltraSharp is not supported; a Lanczos filter is used"), "{warnings}");
    assert!(warnings.contains("hr_second_pass_steps: not supported"), "{warnings}");
    let refused =
        server.post("/sdapi/v1/txt2img", &json!({ "prompt": "x", "enable_hr": true, "hr_scale": 99 }));
    assert!(refused.status == 422 || refused.status == 400, "{}", refused.text());
    // The image in, its text out.
    let read = server.post("/sdapi/v1/png-info", &json!({ "image": reply["images"][0] })).json();
    assert_eq!(read["info"], info["infotexts"][0]);
    assert_eq!(read["parameters"]["Seed"], seed);
    let body = json!({
        "init_images": [format!("data:image/png;base64,{}", STANDARD.encode(png(64, 64)))],
        "prompt": "a cat", "steps": 4, "denoising_strength": 0.5, "width": 128, "height": 128,
    });
    let reply = server.post("/sdapi/v1/img2img", &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["parameters"]["init_images"], Value::Null);
    let enlarged = server.post(
        "/sdapi/v1/extra-single-image",
        &json!({ "image": STANDARD.encode(png(20, 10)), "upscaling_resize": 3, "upscaler_1": "Lanczos" }),
    );
    assert_eq!(decode(&enlarged.json()["image"]).dimensions(), (60, 30));
}

/// What the mask's fields change, inside and outside of it; the rest keeps every bit.
#[test]
fn a1111_masks_mean_what_they_mean_there() {
    let server = Server::new();
    let (side, init) = (128, decode(&STANDARD.encode(png(128, 128)).into()));
    let is_masked = |x: u32, y: u32| x < 48 && y < 48;
    let mut mask = Vec::new();
    let white = |x, y| image::Rgb([if is_masked(x, y) { 255 } else { 0 }; 3]);
    encode(&image::RgbImage::from_fn(side, side, white), OutputFormat::Png, None, &mut mask).unwrap();
    let plain = json!({
        "init_images": [STANDARD.encode(png(side, side))], "mask": STANDARD.encode(mask), "prompt": "a red apple",
        "steps": 3, "seed": 1, "denoising_strength": 0.8, "width": side, "height": side, "mask_blur": 0,
    });
    let draw = |more: Value| {
        let mut body = plain.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = server.post("/sdapi/v1/img2img", &body);
        assert_eq!(reply.status, 200, "{more}: {}", reply.text());
        let reply = reply.json();
        let info: Value = serde_json::from_str(reply["info"].as_str().unwrap()).unwrap();
        (decode(&reply["images"][0]), info["warnings"].to_string())
    };
    let changed = |image: &image::RgbImage| {
        [true, false].map(|inside| {
            let mut pixels = image.enumerate_pixels().filter(|(x, y, _)| is_masked(*x, *y) == inside);
            pixels.any(|(x, y, pixel)| pixel != init.get_pixel(x, y))
        })
    };
    let mut seen = Vec::new();
    for (more, expected) in [
        (json!({}), [true, false]),
        (json!({ "inpainting_mask_invert": 1 }), [false, true]),
        (
            json!({ "inpainting_mask_invert": 0, "inpaint_full_res": true, "inpaint_full_res_padding": 0 }),
            [true, false],
        ),
        (json!({ "mask_blur": 4 }), [true, true]),
    ] {
        let (image, warnings) = draw(more.clone());
        assert_eq!((changed(&image), warnings.contains("mask")), (expected, false), "{more}: {warnings}");
        assert!(!seen.contains(&image), "{more}: the same image as another");
        seen.push(image);
    }
    let (image, warnings) = draw(json!({ "inpainting_fill": 2 }));
    assert!(image == seen[0] && warnings.contains("inpainting_fill: 2 is not supported"), "{warnings}");
}

#[test]
fn a1111_lists_are_there() {
    let server = Server::new();
    for path in [
        "options",
        "sd-models",
        "samplers",
        "schedulers",
        "upscalers",
        "latent-upscale-modes",
        "sd-vae",
        "loras",
        "embeddings",
        "prompt-styles",
        "scripts",
        "cmd-flags",
        "memory",
        "progress",
        "sd-modules",
        "hypernetworks",
        "face-restorers",
        "extensions",
        "script-info",
    ] {
        let reply = server.get(&format!("/sdapi/v1/{path}"));
        assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{path}");
        reply.json();
    }
    let title = server.get("/sdapi/v1/sd-models").json()[0]["title"].clone();
    assert_eq!(server.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": title })).status, 200);
    assert_eq!(server.get("/sdapi/v1/options").json()["sd_model_checkpoint"], title);
    let samplers = server.get("/sdapi/v1/samplers").json();
    let known = |name: &str| samplers.as_array().unwrap().iter().any(|sampler| sampler["name"] == name);
    assert!(known("Euler a") && known("DPM++ 2M"));
    let progress = server.get("/sdapi/v1/progress").json();
    assert_eq!((&progress["progress"], &progress["state"]["job_count"]), (&json!(0.0), &json!(0)));
}

#[test]
fn an_interrupted_request_gets_what_there_is() {
    let server = Server::new();
    let body = json!({ "prompt": "a red apple", "steps": 400, "seed": 1, "sampler_name": "Euler" });
    thread::scope(|scope| {
        let asked = scope.spawn(|| server.post("/sdapi/v1/txt2img", &body));
        let started = Instant::now();
        loop {
            let progress = server.get("/sdapi/v1/progress").json();
            if progress["state"]["sampling_step"].as_u64() > Some(2) && progress["current_image"].is_string()
            {
                assert!(progress["progress"].as_f64() > Some(0.0));
                assert_eq!(decode(&progress["current_image"]).dimensions(), (8, 8));
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{progress}");
            thread::sleep(Duration::from_millis(10));
        }
        server.post("/sdapi/v1/interrupt", &json!({}));
        let reply = asked.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        let info: Value = serde_json::from_str(reply.json()["info"].as_str().unwrap()).unwrap();
        assert!(info["warnings"].to_string().contains("interrupted"), "{info}");
        assert_eq!(decode(&reply.json()["images"][0]).dimensions(), (128, 128));
    });
}

#[test]
fn jobs_are_watched_and_cancelled() {
    let server = Server::new();
    let id = server.job(8);
    let events = server.get(&format!("/api/jobs/{id}/events")).events();
    let last = events.last().unwrap();
    assert_eq!((last.0.as_str(), &last.1["status"], &last.1["step"]), ("status", &json!("done"), &json!(8)));
    let previews = events.iter().filter(|(name, _)| name == "preview").count();
    assert!(previews >= 2, "{previews} previews");
    let (long, waiting) = (server.job(500), server.job(2));
    server.wait(&long, |job| job["step"].as_u64() > Some(0));
    let job = server.get(&format!("/api/jobs/{waiting}")).json();
    assert_eq!((&job["status"], &job["position"]), (&json!("queued"), &json!(1)));
    assert_eq!(server.post(&format!("/api/jobs/{long}/cancel"), &json!({})).status, 200);
    let started = Instant::now();
    assert_eq!(server.end(&long)["status"], "cancelled");
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(server.end(&waiting)["status"], "done");
    assert_eq!(server.send("DELETE", &format!("/api/jobs/{waiting}"), &[], b"").status, 409);
    assert_eq!(server.get("/api/jobs/none").status, 404);
    let jobs = server.get("/api/jobs").json();
    assert_eq!(jobs["jobs"][0]["id"], waiting.as_str());
}

#[test]
fn a_client_that_goes_away_cancels_its_job() {
    let server = Server::new();
    let body = json!({ "prompt": "a red apple", "steps": 900 }).to_string();
    let mut stream = server.connect();
    stream.write_all(&server.request("POST", "/v1/images/generations", &[], body.as_bytes())).unwrap();
    let job = || server.get("/api/jobs").json()["jobs"][0].clone();
    let started = Instant::now();
    while job()["step"].as_u64() < Some(1) {
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    drop(stream);
    while job()["status"] == "running" {
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(job()["status"], "cancelled");
}

#[test]
fn a_full_queue_and_a_deadline_are_told() {
    let server = Server::with(|config| {
        config.queue = 1;
        config.deadline = Some(Duration::from_millis(1500));
    });
    let long = server.job(900);
    server.wait(&long, |job| job["status"] == "running");
    server.job(900);
    let reply = server.post("/v1/images/generations", &json!({ "prompt": "x" }));
    assert_eq!(reply.status, 429);
    assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
    assert_eq!(server.get("/readyz").status, 503);
    let job = server.end(&long);
    assert_eq!(job["status"], "failed", "{job}");
    let started = Instant::now();
    let reply = loop {
        let reply = server.post("/v1/images/generations", &json!({ "prompt": "x", "steps": 900 }));
        if reply.status != 429 {
            break reply;
        }
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("deadline")), "{}", reply.text());
}

#[test]
fn only_who_may_ask_is_answered() {
    let server = Server::new();
    let get = |headers: &[(&str, &str)]| server.send("GET", "/v1/models", headers, b"");
    assert_eq!(get(&[("Host", "evil.example")]).status, 403);
    assert_eq!(get(&[("Host", "localhost:1234")]).status, 200);
    assert_eq!(get(&[("Origin", "https://evil.example")]).status, 403);
    assert_eq!(get(&[("Origin", "null")]).status, 403);
    let own = format!("http://{}", server.address);
    assert_eq!(get(&[("Origin", &own)]).status, 200);
    let listed = get(&[("Origin", "https://listed.example")]);
    assert_eq!(
        (listed.status, listed.header("access-control-allow-origin")),
        (200, "https://listed.example")
    );
    assert_eq!(get(&[]).header("access-control-allow-origin"), "");
    let asked = server.send("OPTIONS", "/v1/models", &[("Origin", "https://listed.example")], b"");
    assert_eq!(asked.status, 204);
    let server = Server::with(|config| config.token = Some("correct horse".into()));
    let get = |headers: &[(&str, &str)]| server.send("GET", "/v1/models", headers, b"");
    let refused = get(&[]);
    assert_eq!((refused.status, refused.header("www-authenticate").is_empty()), (401, false));
    assert_eq!(get(&[("Authorization", "Bearer wrong horse")]).status, 401);
    assert_eq!(get(&[("Authorization", "Bearer correct horse")]).status, 200);
    let basic = format!("Basic {}", STANDARD.encode("me:correct horse"));
    assert_eq!(get(&[("Authorization", &basic)]).status, 200);
    assert_eq!((server.get("/healthz").status, server.get("/").status), (200, 200));
    for path in ["/metrics", "/api/info", "/latest/image.png", "/sdapi/v1/options"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
}

#[test]
fn hostile_requests_are_refused_and_the_next_one_is_served() {
    let server = Server::new();
    let big = vec![b' '; limit::BODY_BYTES + 1];
    let deep = "[".repeat(1_000_000);
    let long = json!({ "prompt": "x".repeat(limit::PROMPT_CHARS + 1) }).to_string();
    // A PNG that claims to be huge.
    let bomb = STANDARD.encode(huge_png());
    let bomb =
        json!({ "init_images": [bomb], "prompt": "x", "width": 128, "height": 128, "steps": 1 }).to_string();
    let images = "/v1/images/generations";
    let cases: &[(&str, &[u8], &[u16])] = &[
        (images, &big, &[413]),
        (images, b"", &[400]),
        (images, b"null", &[400]),
        (images, b"[1,2]", &[400]),
        (images, b"{\"prompt\": ", &[400]),
        (images, b"\xff\xfe{\0}\0", &[400]),
        (images, deep.as_bytes(), &[400]),
        (images, long.as_bytes(), &[413]),
        (images, b"{\"prompt\": 5e999}", &[400]),
        (images, b"{\"prompt\": [\"a\"]}", &[400]),
        (images, b"{\"prompt\": \"a\", \"n\": 0}", &[400]),
        (images, b"{\"prompt\": \"a\", \"n\": -1}", &[400]),
        (images, b"{\"prompt\": \"a\", \"n\": 18446744073709551615}", &[400]),
        (images, b"{\"prompt\": \"a\", \"size\": \"0x0\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"size\": \"99999999999x1\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"size\": \"4294967295x4294967295\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"size\": \"large\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"steps\": 100000}", &[400]),
        (images, b"{\"prompt\": \"a\", \"steps\": \"many\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"seed\": 36893488147419103232}", &[400]),
        (images, b"{\"prompt\": \"a\", \"seed\": -2}", &[400]),
        (images, b"{\"prompt\": \"a\", \"guidance_scale\": 1e300}", &[400, 500]),
        (images, b"{\"prompt\": \"a\", \"sampler\": \"nonsense\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"output_format\": \"exe\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"response_format\": \"x\"}", &[400]),
        (images, b"{\"prompt\": \"a\", \"stream\": true, \"partial_images\": 4}", &[400]),
        ("/v1/images/edits", b"{\"prompt\": \"a\"}", &[400]),
        ("/v1/images/edits", b"{\"prompt\": \"a\", \"image\": \"../../etc/passwd\"}", &[400]),
        ("/v1/images/edits", b"{\"prompt\": \"a\", \"image\": \"aGVsbG8=\"}", &[400]),
        ("/sdapi/v1/img2img", b"{\"prompt\": \"a\", \"init_images\": [\"\"]}", &[400]),
        ("/sdapi/v1/img2img", b"{\"prompt\": \"a\", \"init_images\": [7]}", &[400]),
        ("/sdapi/v1/img2img", bomb.as_bytes(), &[200, 400]),
        ("/sdapi/v1/txt2img", b"{\"prompt\": \"a\", \"batch_size\": 100000, \"n_iter\": 100000}", &[400]),
        ("/sdapi/v1/txt2img", b"{\"prompt\": \"a\", \"width\": -8}", &[400]),
        (
            "/sdapi/v1/txt2img",
            b"{\"prompt\": \"a\", \"override_settings\": 7, \"steps\": 1, \"width\": 64, \"height\": 64}",
            &[200],
        ),
        ("/sdapi/v1/png-info", b"{\"image\": \"eA==\"}", &[200, 400]),
        ("/sdapi/v1/extra-single-image", b"{\"image\": \"eA==\"}", &[400]),
        ("/sdapi/v1/options", b"7", &[400]),
        ("/api/jobs", b"{}", &[400]),
        ("/api/jobs", b"{\"recipe\": {\"version\": 2, \"prompt\": \"a\"}}", &[400]),
        (
            "/api/jobs",
            b"{\"recipe\": {\"version\": 1, \"prompt\": \"a\", \"model\": \"/etc/passwd\"}}",
            &[400],
        ),
        (
            "/api/jobs",
            b"{\"recipe\": {\"version\": 1, \"prompt\": \"a\", \"init\": \"/etc/passwd\"}}",
            &[400],
        ),
        ("/api/jobs", b"{\"recipe\": {\"version\": 1, \"promt\": \"a\"}}", &[400]),
        ("/api/jobs", b"{\"recipe\": {\"version\": 1, \"prompt\": \"a\"}, \"channel\": \"../x\"}", &[400]),
        (
            "/api/jobs",
            b"{\"recipe\": {\"version\": 1, \"prompt\": \"a\"}, \"init\": \"data:text/html,x\"}",
            &[400],
        ),
    ];
    for (path, body, expected) in cases {
        let reply = server.send("POST", path, &[("Content-Type", "application/json")], body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert!(expected.contains(&reply.status), "{path} {shown}: {} {}", reply.status, reply.text());
        if reply.status >= 400 {
            let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(!message.is_empty() && message.len() < 5000, "{path} {shown}: {message}");
        }
    }
    for path in [
        "/../../etc/passwd",
        "/latest/..%2f..%2fetc%2fpasswd",
        "/kiosk/../../Cargo.toml",
        "/kiosk/%2e%2e/x",
        "/api/jobs/%00/image.png",
        "/latest/a.exe",
        "/v1/models/%ff",
        "/nothing",
        "/latest/none.png",
    ] {
        let status = server.get(path).status;
        assert!([400, 404].contains(&status), "{path}: {status}");
    }
    assert_eq!(server.send("PUT", "/v1/images/generations", &[], b"").status, 405);
    let flood = "X: y\r\n".repeat(100_000);
    let floods = [
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{flood}\r\n"),
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(1 << 20)),
        "NONSENSE\r\n\r\n".into(),
        "GET / HTTP/9.9\r\n\r\n".into(),
        "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n".into(),
        "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
            .into(),
    ];
    for flood in floods {
        let status = server.raw(flood.as_bytes()).status;
        assert!([0, 400, 414, 431, 505].contains(&status), "{status}: {}", &flood[..40]);
    }
    for (kind, body) in [
        ("multipart/form-data", b"x".to_vec()),
        (
            "multipart/form-data; boundary=XX",
            b"--XX\r\nContent-Disposition: form-data; name=\"image\"; fi".to_vec(),
        ),
        ("multipart/form-data; boundary=XX", form(&vec![("x", None, &b"1"[..]); limit::FORM_FIELDS + 1]).1),
    ] {
        let reply = server.send("POST", "/v1/images/edits", &[("Content-Type", kind)], &body);
        assert_eq!(reply.status, 400, "{kind}: {}", reply.text());
    }
    let reply = server.post("/v1/images/generations", &json!({ "prompt": "a red apple", "steps": 1 }));
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn slow_and_idle_connections_stop_nobody() {
    let server = Server::new();
    let idle: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    let slow: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"POST /v1/images/generations HTTP/1.1\r\nHost: loc").unwrap();
            stream
        })
        .collect();
    let started = Instant::now();
    assert_eq!(server.get("/healthz").status, 200);
    assert!(started.elapsed() < Duration::from_secs(5));
    drop((idle, slow));
}

#[test]
fn large_bodies_wait_for_room_and_small_ones_do_not() {
    let server = Server::new();
    let begin = format!(
        "POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{{",
        limit::BODY_BYTES
    );
    let large = || {
        let mut stream = server.connect();
        stream.write_all(begin.as_bytes()).unwrap();
        stream
    };
    let held: Vec<TcpStream> = (0..limit::BODIES_BYTES / limit::BODY_BYTES).map(|_| large()).collect();
    thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    let one_more = large();
    let small = server.post("/v1/images/generations", &json!({ "prompt": "a cat", "steps": 1 }));
    assert_eq!(small.status, 200, "{}", small.text());
    let refused = Reply::read(one_more);
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(started.elapsed() >= limit::ROOM_TIME - Duration::from_millis(500));
    drop(held);
    thread::sleep(Duration::from_millis(200));
    let body = [b"{\"prompt\": \"a cat\", \"steps\": 1, \"x\": \"", &[b'x'; 1 << 20][..], b"\"}"].concat();
    let served = server.send("POST", "/v1/images/generations", &[], &body);
    assert_eq!(served.status, 200, "{}", served.text());
}

#[test]
fn displays_get_the_newest_image_of_their_channel() {
    let server = Server::new();
    assert_eq!(server.get("/latest/hall.png").status, 404);
    let recipe = json!({ "version": 1, "prompt": "a red apple", "seed": 1, "steps": 1 });
    let job = server.post("/api/jobs", &json!({ "recipe": recipe, "channel": "hall" })).json();
    server.end(job["id"].as_str().unwrap());
    let whole = server.get("/latest/hall.png");
    assert_eq!(whole.status, 200);
    let etag = whole.header("etag").to_owned();
    let again = server.send("GET", "/latest/hall.png", &[("If-None-Match", &etag)], b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    let panel = server.get("/latest/hall.png?width=800&height=480&palette=7");
    let image = ImageFile::from_bytes("panel", panel.body).unwrap().decode().unwrap();
    assert_eq!(image.dimensions(), (800, 480));
    assert_ne!(etag, panel.headers.iter().find(|(name, _)| name == "etag").unwrap().1);
    assert_eq!(server.get("/latest/hall.png?palette=9").status, 400);
    // Another image, another tag.
    let recipe = json!({ "version": 1, "prompt": "a red apple", "seed": 2, "steps": 1 });
    let job = server.post("/api/jobs", &json!({ "recipe": recipe, "channel": "hall" })).json();
    server.end(job["id"].as_str().unwrap());
    assert_eq!(server.send("GET", "/latest/hall.png", &[("If-None-Match", &etag)], b"").status, 200);
}

#[test]
fn a_server_that_ends_finishes_what_runs() {
    let server = Server::new();
    let events = {
        let id = server.job(60);
        let waiting = server.job(2);
        server.wait(&id, |job| job["status"] == "running");
        let stream = server.connect();
        let mut asking = stream.try_clone().unwrap();
        asking.write_all(&server.request("GET", &format!("/api/jobs/{id}/events"), &[], b"")).unwrap();
        thread::sleep(Duration::from_millis(100));
        server.stop.store(true, Ordering::Relaxed);
        let _ = waiting;
        Reply::read(stream).events()
    };
    assert_eq!(events.last().unwrap().1["status"], "done");
}

#[test]
fn fixed_prompts_are_the_only_ones_and_strict_models_have_their_names() {
    let server = Server::with(|config| {
        config.fixed_prompts = Some(vec!["a red apple".into()]);
        config.is_strict = true;
    });
    let post = |body: Value| server.post("/v1/images/generations", &body).status;
    assert_eq!(post(json!({ "prompt": "a cat", "steps": 1 })), 403);
    assert_eq!(post(json!({ "prompt": "a red apple", "steps": 1 })), 200);
    assert_eq!(post(json!({ "prompt": "a red apple", "steps": 1, "model": "dall-e-2" })), 404);
    assert_eq!(server.get("/api/info").json()["fixed_prompts"], json!(["a red apple"]));
}

#[test]
fn the_page_and_the_counts_are_there() {
    let server = Server::new();
    for path in ["/", "/kiosk/app.js", "/kiosk/style.css", "/kiosk/theme.css", "/kiosk/texts.js"] {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.header("content-security-policy").contains("default-src 'none'"), "{path}");
    }
    server.end(&server.job(2));
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    for line in ["calotype_images_total 1", "calotype_steps_total 2", "calotype_queue_length 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
}

/// The document has the paths of the source and no others, each with the methods that are answered.
#[test]
fn the_openapi_document_is_of_this_server() {
    let server = Server::new();
    let id = server.job(1);
    let job = server.end(&id);
    let document = server.get("/openapi.json").json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let documented = &document["components"]["schemas"]["Job"];
    assert_eq!(keys(&documented["properties"]), keys(&job));
    assert_eq!(documented["required"].as_array().unwrap().len(), keys(&job).len());

    let mut routes = BTreeSet::new();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/server")).unwrap() {
        let path = entry.unwrap().path();
        // The page is for browsers.
        if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("kiosk.rs") {
            let source = fs::read_to_string(&path).unwrap();
            let starts = source.split(".route(\"").skip(1);
            routes.extend(starts.map(|start| start.split('"').next().unwrap().to_owned()));
        }
    }
    assert!(routes.len() > 40, "only {} were found", routes.len());
    assert_eq!(keys(&document["paths"]), routes);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path =
            path.replace("{id}", &id).replace("{file}", "image.png").replace("{name}", "calotype-emoji-1");
        for method in methods.as_object().unwrap().keys() {
            let reply = server.send(&method.to_uppercase(), &path, &[], b"");
            assert!(![404, 405].contains(&reply.status), "{method} {path}: {}", reply.text());
        }
        let reply = server.send("PATCH", &path, &[], b"");
        assert_eq!(reply.status, 405, "PATCH {path}: {}", reply.text());
    }
}
