//! The page of runs under way, on this machine alone: a small server that reads the run folders again and again and sends what
//! changed. It has no endpoint that writes, answers to no other host name, and sends no script but its own.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tiny_http::{Header, Method, Request, Response, Server};
use upgrayedd::report::{Log, Page, body, page};

use crate::args::WatchArgs;
use crate::{STOP, report, text};

/// How often the folders are read, and how often a page is sent at most.
const READ_EVERY: Duration = Duration::from_millis(400);
const SEND_EVERY: Duration = Duration::from_secs(1);
/// A line that says nothing, so that both sides notice when the other has gone.
const PULSE_EVERY: Duration = Duration::from_secs(15);
/// How long to wait before looking whether to stop.
const PATIENCE: Duration = Duration::from_millis(200);
/// Requests that are answered at a time.
const MOST_REQUESTS: usize = 64;

/// What may be done by the page: nothing but its own style, its own script, and events from here.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub fn run(args: &WatchArgs) -> Result<()> {
    let shown = Arc::new(Shown::new(report::open(&args.runs)?, args.runs.clone()));
    let server = Server::http(("127.0.0.1", args.port))
        .map_err(|e| anyhow!("cannot listen on 127.0.0.1, port {}: {e}", args.port))?;
    let port = server.server_addr().to_ip().map_or(args.port, |address| address.port());
    text::print(&format!("http://127.0.0.1:{port}/"));
    let following = shown.clone();
    let follower = std::thread::spawn(move || following.follow());
    let result = serve(&server, &shown, port);
    shown.over.store(true, Ordering::SeqCst);
    let _ = follower.join();
    result
}

fn stopped() -> bool {
    STOP.load(Ordering::SeqCst)
}

fn serve(server: &Server, shown: &Arc<Shown>, port: u16) -> Result<()> {
    let busy = Arc::new(AtomicUsize::new(0));
    while !stopped() {
        let Some(request) = server.recv_timeout(PATIENCE)? else { continue };
        if busy.load(Ordering::SeqCst) >= MOST_REQUESTS {
            plain(request, 503, "too many pages are open");
            continue;
        }
        let (shown, place) = (shown.clone(), Place::of(&busy));
        std::thread::spawn(move || {
            answer(request, &shown, port);
            drop(place);
        });
    }
    Ok(())
}

/// One of those that are answered, until it is dropped, however that comes.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn of(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::SeqCst);
        Self(busy.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(request: Request, shown: &Shown, port: u16) {
    let host = request.headers().iter().find(|h| h.field.equiv("Host")).map(|h| h.value.as_str().to_owned());
    // A page from elsewhere whose name was made to point here says another host.
    if host.is_none_or(|host| host != format!("127.0.0.1:{port}") && host != format!("localhost:{port}")) {
        return plain(request, 403, "this server answers to 127.0.0.1 alone");
    }
    if !matches!(request.method(), Method::Get | Method::Head) {
        return plain(request, 405, "there is nothing to be written here");
    }
    match request.url() {
        "/" => {
            // Nobody waits for the runs while a reader takes its time.
            let made = page(&shown.runs().logs, Page::Live);
            match made {
                Ok(html) => send(request, 200, "text/html; charset=utf-8", html),
                Err(error) => plain(request, 500, &error.to_string()),
            }
        }
        "/live.js" => {
            send(request, 200, "text/javascript; charset=utf-8", include_str!("live.js").to_owned())
        }
        "/events" => shown.stream(request),
        _ => plain(request, 404, "there is one page: /"),
    }
}

fn plain(request: Request, status: u16, text: &str) {
    send(request, status, "text/plain; charset=utf-8", format!("{text}\n"));
}

fn send(request: Request, status: u16, kind: &str, text: String) {
    let mut response = Response::from_string(text).with_status_code(status);
    for (name, value) in headers(kind) {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    // Whoever asked may have gone.
    let _ = request.respond(response);
}

fn headers(kind: &str) -> [(&'static str, &str); 5] {
    [
        ("Content-Type", kind),
        ("Content-Security-Policy", POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    ]
}

/// What is shown, and who waits for it to change.
struct Shown {
    runs: Mutex<Runs>,
    changed: Condvar,
    /// The server has ended.
    over: AtomicBool,
}

struct Runs {
    folders: Vec<PathBuf>,
    logs: Vec<Log>,
    /// Counts changes.
    version: u64,
    /// The page of a version, for all who look.
    body: Option<(u64, Arc<str>)>,
    /// Why the folders cannot be read just now.
    trouble: Option<String>,
}

impl Shown {
    fn new(logs: Vec<Log>, folders: Vec<PathBuf>) -> Self {
        let runs = Runs { folders, logs, version: 1, body: None, trouble: None };
        Self { runs: Mutex::new(runs), changed: Condvar::new(), over: AtomicBool::new(false) }
    }

    fn is_over(&self) -> bool {
        stopped() || self.over.load(Ordering::SeqCst)
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the folders again and again.
    fn follow(&self) {
        while !self.is_over() {
            if self.runs().refresh() {
                self.changed.notify_all();
            }
            std::thread::sleep(READ_EVERY);
        }
    }

    /// Sends the page whenever it has changed, until one side has enough.
    fn stream(&self, request: Request) {
        let mut writer = request.into_writer();
        let mut head = "HTTP/1.1 200 OK\r\nConnection: close\r\n".to_owned();
        headers("text/event-stream")
            .iter()
            .for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        let mut put = |text: &str| writer.write_all(text.as_bytes()).and_then(|()| writer.flush()).is_ok();
        if !put(&format!("{head}\r\nretry: 1000\n\n")) {
            return;
        }
        let (mut sent, mut last) = (0, Instant::now());
        while !self.is_over() {
            let mut runs = self.runs();
            if runs.version == sent {
                let woken = self.changed.wait_timeout(runs, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                runs = woken.0;
            }
            if runs.version == sent {
                drop(runs);
                if last.elapsed() >= PULSE_EVERY {
                    last = Instant::now();
                    if !put(":\n\n") {
                        return;
                    }
                }
                continue;
            }
            sent = runs.version;
            let event = runs.event();
            drop(runs);
            last = Instant::now();
            if !put(&event) {
                return;
            }
            std::thread::sleep(SEND_EVERY);
        }
    }
}

impl Runs {
    /// Whether anything has changed.
    fn refresh(&mut self) -> bool {
        let mut changed = false;
        let mut trouble = None;
        for (log, folder) in self.logs.iter_mut().zip(&self.folders) {
            match log.refresh() {
                Ok(news) => changed |= news,
                Err(error) => {
                    let (name, reason) = (log.name(), error.to_string());
                    let reason = reason.strip_prefix(&folder.display().to_string()).unwrap_or(&reason);
                    trouble =
                        Some(format!("{name} cannot be read: {}", reason.trim_start_matches([':', ' '])));
                }
            }
        }
        changed |= trouble != self.trouble;
        self.trouble = trouble;
        self.version += u64::from(changed);
        changed
    }

    /// The page as an event, and another about what cannot be read.
    fn event(&mut self) -> String {
        let made = match &self.body {
            Some((version, made)) if *version == self.version => made.clone(),
            _ => match body(&self.logs) {
                Ok(made) => Arc::from(made),
                Err(error) => return message("trouble", &error.to_string()),
            },
        };
        self.body = Some((self.version, made.clone()));
        let trouble = self.trouble.as_ref().map(|trouble| message("trouble", trouble));
        message("body", &made) + &trouble.unwrap_or_default()
    }
}

/// A server-sent event. Every line of its data is marked as such, so that no text ends it.
fn message(name: &str, data: &str) -> String {
    let mut text = format!("event: {name}\n");
    data.split(['\n', '\r']).for_each(|line| text.push_str(&format!("data: {line}\n")));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_text_ends_an_event() {
        let text = super::message("body", "<p>\n\nevent: other\rdata: x</p>");
        assert_eq!(text, "event: body\ndata: <p>\ndata: \ndata: event: other\ndata: data: x</p>\n\n");
    }
}
