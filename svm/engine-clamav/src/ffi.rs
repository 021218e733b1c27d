//! libclamav, declared by hand (1.4, `/usr/include/clamav.h`) and wrapped so that
//! nothing outside this file is unsafe.
//!
//! libclamav keeps global state (its log callback) and is used by one thread; the
//! wrapper's engine is therefore neither `Send` nor `Sync`.

#![allow(unsafe_code)]

use crate::findings::is_complaint;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// A result of libclamav (`cl_error_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(c_uint);

impl Code {
    pub const CLEAN: Self = Self(0);
    pub const VIRUS: Self = Self(1);
    pub const TIMEOUT: Self = Self(21);
    /// Given to libclamav: it goes on without this part.
    const BREAK: Self = Self(22);
    pub const MAX_RECURSION: Self = Self(23);
    pub const MAX_SIZE: Self = Self(24);
    pub const MAX_FILES: Self = Self(25);

    /// In libclamav's words.
    pub fn text(self) -> String {
        // SAFETY: cl_strerror takes any value and returns a static string.
        let text = unsafe { cl_strerror(self.0) };
        lossy(text)
    }

    fn check(self) -> Result<(), Self> {
        if self == Self::CLEAN {
            Ok(())
        } else {
            Err(self)
        }
    }
}

/// Engine settings (`enum cl_engine_field`) that this program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Field {
    MaxScanSize = 0,
    MaxFileSize = 1,
    MaxRecursion = 2,
    MaxFiles = 3,
    MinCreditCards = 4,
    MinSocialSecurityNumbers = 5,
    PuaCategories = 6,
    TmpDir = 13,
    BytecodeTimeout = 16,
    MaxEmbeddedPe = 18,
    MaxHtmlNormalize = 19,
    MaxHtmlNoTags = 20,
    MaxScriptNormalize = 21,
    MaxZipTypeRcg = 22,
    DisableCache = 25,
    MaxPartitions = 28,
    MaxIconsPe = 29,
    MaxRecHwp3 = 30,
    MaxScanTime = 31,
    PcreMatchLimit = 32,
    PcreRecMatchLimit = 33,
    PcreMaxFileSize = 34,
    DisablePeCertificates = 35,
}

/// `CL_DB_STDOPT`: phishing signatures, phishing URLs, (signed) bytecode.
pub const DB_STANDARD: u32 = DB_PHISHING | DB_PHISHING_URLS | DB_BYTECODE;
/// `CL_DB_PHISHING`
pub const DB_PHISHING: u32 = 0x2;
/// `CL_DB_PHISHING_URLS`
pub const DB_PHISHING_URLS: u32 = 0x8;
/// `CL_DB_BYTECODE`
pub const DB_BYTECODE: u32 = 0x2000;
/// `CL_DB_PUA`
pub const DB_PUA: u32 = 0x10;
/// `CL_DB_PUA_INCLUDE`
pub const DB_PUA_INCLUDE: u32 = 0x100;
/// `CL_DB_PUA_EXCLUDE`
pub const DB_PUA_EXCLUDE: u32 = 0x200;

/// `CL_SCAN_GENERAL_ALLMATCHES`
pub const GENERAL_ALL_MATCHES: u32 = 0x1;
/// `CL_SCAN_GENERAL_HEURISTICS`
pub const GENERAL_HEURISTICS: u32 = 0x4;

/// `struct cl_scan_options`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ScanFlags {
    pub general: u32,
    pub parse: u32,
    pub heuristic: u32,
    pub mail: u32,
    pub dev: u32,
}

/// `LAYER_ATTRIBUTES_NORMALIZED`
const LAYER_NORMALIZED: u32 = 0x1;

#[repr(C)]
struct ClEngine {
    _opaque: [u8; 0],
}

type MsgCallback = extern "C" fn(c_uint, *const c_char, *const c_char, *mut c_void);
type FoundCallback = extern "C" fn(c_int, *const c_char, *mut c_void);
type PostScanCallback = extern "C" fn(c_int, c_int, *const c_char, *mut c_void) -> c_uint;
type InspectionCallback = extern "C" fn(
    c_int,
    *const c_char,
    *const *const c_char,
    usize,
    *const c_char,
    usize,
    *const c_char,
    u32,
    u32,
    *mut c_void,
) -> c_uint;

unsafe extern "C" {
    fn cl_init(options: c_uint) -> c_uint;
    fn cl_engine_new() -> *mut ClEngine;
    fn cl_engine_free(engine: *mut ClEngine) -> c_uint;
    fn cl_engine_set_num(engine: *mut ClEngine, field: c_uint, number: c_longlong) -> c_uint;
    fn cl_engine_get_num(engine: *const ClEngine, field: c_uint, error: *mut c_int) -> c_longlong;
    fn cl_engine_set_str(engine: *mut ClEngine, field: c_uint, text: *const c_char) -> c_uint;
    fn cl_engine_set_clcb_file_inspection(engine: *mut ClEngine, callback: InspectionCallback);
    fn cl_engine_set_clcb_virus_found(engine: *mut ClEngine, callback: FoundCallback);
    fn cl_engine_set_clcb_post_scan(engine: *mut ClEngine, callback: PostScanCallback);
    fn cl_load(
        path: *const c_char,
        engine: *mut ClEngine,
        signatures: *mut c_uint,
        options: c_uint,
    ) -> c_uint;
    fn cl_engine_compile(engine: *mut ClEngine) -> c_uint;
    fn cl_scandesc_callback(
        fd: c_int,
        name: *const c_char,
        virus: *mut *const c_char,
        scanned: *mut c_ulong,
        engine: *const ClEngine,
        options: *mut ScanFlags,
        context: *mut c_void,
    ) -> c_uint;
    fn cl_set_clcb_msg(callback: MsgCallback);
    fn cl_strerror(code: c_uint) -> *const c_char;
    fn cl_retver() -> *const c_char;
}

const _: () = assert!(size_of::<ScanFlags>() == 20 && size_of::<c_long>() == 8);

/// The library's version, for instance `1.4.6`.
pub fn version() -> String {
    // SAFETY: returns a static string.
    lossy(unsafe { cl_retver() })
}

/// A content, or a part that libclamav unpacked from it, that is about to be scanned.
#[derive(Debug)]
pub struct Layer<'a> {
    /// 0 for the content itself.
    pub level: usize,
    /// The names of the containers that it is in, outermost (level 0) first, where known.
    pub ancestors: &'a [Option<&'a [u8]>],
    /// Its own name, where known.
    pub name: Option<&'a [u8]>,
    /// Its bytes, if it has any.
    pub content: Option<&'a [u8]>,
    /// A version of its parent that was rewritten for matching, not a part of it.
    pub normalized: bool,
}

/// What happens in the course of a scan.
#[derive(Debug)]
pub enum Event<'a> {
    /// A part is entered.
    Enter(Layer<'a>),
    /// The part that was entered last is done.
    Leave {
        /// Whether anything has alerted so far.
        alert: bool,
    },
    /// A signature matched.
    Found(&'a str),
}

/// What libclamav is told at [`Event::Enter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Scan the part.
    On,
    /// Leave it out.
    Past,
}

/// An engine, before and after it is compiled.
#[derive(Debug)]
pub struct RawEngine(NonNull<ClEngine>);

struct Context<'a> {
    on_event: &'a mut dyn FnMut(Event<'_>) -> Go,
}

impl RawEngine {
    /// A new engine with libclamav's defaults. Sends libclamav's messages to
    /// [`take_messages`].
    pub fn new() -> Result<Self, String> {
        // SAFETY: the callback lives as long as the program; cl_init may be called
        // more than once; nothing else uses the library at this time.
        unsafe {
            cl_set_clcb_msg(on_message);
            Code(cl_init(0))
                .check()
                .map_err(|code| format!("cl_init: {}", code.text()))?;
        }
        // SAFETY: allocates, or returns null.
        let engine = NonNull::new(unsafe { cl_engine_new() });
        let engine = Self(engine.ok_or("libclamav cannot make an engine")?);
        // SAFETY: the engine is valid, and the callbacks live as long as the program.
        unsafe {
            cl_engine_set_clcb_file_inspection(engine.0.as_ptr(), on_inspection);
            cl_engine_set_clcb_virus_found(engine.0.as_ptr(), on_found);
            cl_engine_set_clcb_post_scan(engine.0.as_ptr(), on_post_scan);
        }
        Ok(engine)
    }

    /// Sets a number.
    pub fn set_number(&mut self, field: Field, value: i64) -> Result<(), Code> {
        // SAFETY: the engine is valid and not in use by a scan, for we hold it
        // exclusively; libclamav checks field and value.
        Code(unsafe { cl_engine_set_num(self.0.as_ptr(), field as c_uint, value) }).check()
    }

    /// Reads a number back.
    pub fn number(&self, field: Field) -> i64 {
        // SAFETY: the engine is valid, and the error pointer may be null.
        unsafe { cl_engine_get_num(self.0.as_ptr(), field as c_uint, std::ptr::null_mut()) }
    }

    /// Sets where temporary files go.
    pub fn set_scratch(&mut self, directory: &Path) -> Result<(), String> {
        let path = c_path(directory)?;
        self.set_text(Field::TmpDir, &path)
    }

    /// Sets which categories of unwanted applications are loaded, or left out: their
    /// names, each between dots.
    pub fn set_pua_categories(&mut self, categories: &str) -> Result<(), String> {
        let text = CString::new(categories).map_err(|_| "a NUL byte".to_owned())?;
        self.set_text(Field::PuaCategories, &text)
    }

    fn set_text(&mut self, field: Field, text: &CStr) -> Result<(), String> {
        // SAFETY: as in set_number; libclamav copies the string.
        let code = unsafe { cl_engine_set_str(self.0.as_ptr(), field as c_uint, text.as_ptr()) };
        Code(code).check().map_err(Code::text)
    }

    /// Loads one database file; gives the number of its signatures.
    pub fn load(&mut self, file: &Path, options: u32) -> Result<u32, String> {
        let path = c_path(file)?;
        let mut signatures: c_uint = 0;
        // SAFETY: the engine is valid and held exclusively; path and counter live
        // for the call.
        let code = unsafe { cl_load(path.as_ptr(), self.0.as_ptr(), &mut signatures, options) };
        Code(code).check().map_err(Code::text)?;
        Ok(signatures)
    }

    /// Makes the engine ready for scans; nothing can be loaded after this.
    pub fn compile(&mut self) -> Result<(), String> {
        // SAFETY: the engine is valid and held exclusively.
        Code(unsafe { cl_engine_compile(self.0.as_ptr()) })
            .check()
            .map_err(Code::text)
    }

    /// Scans a descriptor. `on_event` sees whatever is unpacked, its bytes for the time
    /// of the call only, and what is found.
    pub fn scan(
        &mut self,
        fd: BorrowedFd<'_>,
        mut flags: ScanFlags,
        on_event: &mut dyn FnMut(Event<'_>) -> Go,
    ) -> Code {
        let mut context = Context { on_event };
        let mut virus: *const c_char = std::ptr::null();
        let mut scanned: c_ulong = 0;
        // SAFETY: the engine is valid and compiled, the descriptor open; all pointers
        // live for the call, and the context is used by the callbacks only, in
        // this call and this thread. A null name is allowed.
        Code(unsafe {
            cl_scandesc_callback(
                fd.as_raw_fd(),
                std::ptr::null(),
                &mut virus,
                &mut scanned,
                self.0.as_ptr(),
                &mut flags,
                (&raw mut context).cast(),
            )
        })
    }
}

impl Drop for RawEngine {
    fn drop(&mut self) {
        // SAFETY: the engine is valid, and nobody uses it after this.
        unsafe { cl_engine_free(self.0.as_ptr()) };
    }
}

/// One of libclamav's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryMessage {
    /// An error, as opposed to a warning.
    pub error: bool,
    /// Its words.
    pub text: String,
}

/// Most messages that are kept between two calls of [`take_messages`]; the first
/// ones tell most.
const MAX_MESSAGES: usize = 64;
/// `CL_MSG_WARN`
const MSG_WARN: c_uint = 64;
/// `CL_MSG_ERROR`
const MSG_ERROR: c_uint = 128;

static MESSAGES: Mutex<Vec<LibraryMessage>> = Mutex::new(Vec::new());

/// Takes the warnings and errors that libclamav has written since the last time.
pub fn take_messages() -> Vec<LibraryMessage> {
    std::mem::take(&mut *MESSAGES.lock().unwrap_or_else(PoisonError::into_inner))
}

extern "C" fn on_message(
    severity: c_uint,
    _full: *const c_char,
    text: *const c_char,
    _context: *mut c_void,
) {
    if severity < MSG_WARN || text.is_null() {
        return;
    }
    let mut messages = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let text = lossy(text).trim_end().to_owned();
    // However much noise a content makes: that work was left undone is not lost in it.
    let room = messages.len() < MAX_MESSAGES;
    if room || (messages.len() == MAX_MESSAGES && is_complaint(&text)) {
        messages.push(LibraryMessage {
            error: severity >= MSG_ERROR,
            text,
        });
    }
}

/// Hands an event of a scan to whoever listens to it.
///
/// # Safety
/// `context` is null, or the one that `scan` made and that lives for its call;
/// libclamav calls back in that thread, one call at a time.
unsafe fn tell(context: *mut c_void, event: Event<'_>) -> Go {
    if context.is_null() {
        return Go::On;
    }
    // SAFETY: by this function's contract.
    let context = unsafe { &mut *context.cast::<Context<'_>>() };
    (context.on_event)(event)
}

extern "C" fn on_found(_fd: c_int, name: *const c_char, context: *mut c_void) {
    let name = lossy(name);
    // SAFETY: libclamav passes the scan's context, as `tell` asks for.
    unsafe { tell(context, Event::Found(&name)) };
}

extern "C" fn on_post_scan(
    _fd: c_int,
    result: c_int,
    _name: *const c_char,
    context: *mut c_void,
) -> c_uint {
    let alert = c_uint::try_from(result) == Ok(Code::VIRUS.0);
    // SAFETY: libclamav passes the scan's context, as `tell` asks for.
    unsafe { tell(context, Event::Leave { alert }) };
    Code::CLEAN.0
}

extern "C" fn on_inspection(
    _fd: c_int,
    _kind: *const c_char,
    ancestors: *const *const c_char,
    _parent_size: usize,
    name: *const c_char,
    size: usize,
    buffer: *const c_char,
    level: u32,
    attributes: u32,
    context: *mut c_void,
) -> c_uint {
    let content = (!buffer.is_null() && size > 0).then(|| {
        // SAFETY: libclamav passes `size` readable bytes at `buffer` for this call.
        unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) }
    });
    let level = level as usize;
    let known = if ancestors.is_null() { 0 } else { level };
    let ancestors: Vec<Option<&[u8]>> = (0..known)
        .map(|at| {
            // SAFETY: the array has `level` entries, each null or a string that lives
            // for this call.
            unsafe { bytes_of(*ancestors.add(at)) }
        })
        .collect();
    let layer = Layer {
        level,
        ancestors: &ancestors,
        // SAFETY: null, or a string that lives for this call.
        name: unsafe { bytes_of(name) },
        content,
        normalized: attributes & LAYER_NORMALIZED != 0,
    };
    // SAFETY: libclamav passes the scan's context, as `tell` asks for.
    match unsafe { tell(context, Event::Enter(layer)) } {
        Go::On => Code::CLEAN.0,
        Go::Past => Code::BREAK.0,
    }
}

/// The bytes of a C string, if there is one.
///
/// # Safety
/// `text` is null, or a C string that outlives `'a`.
unsafe fn bytes_of<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: by this function's contract.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A copy of a string that libclamav returned.
fn lossy(text: *const c_char) -> String {
    // SAFETY: every caller passes what libclamav returned as a string: null, or
    // valid until the library is called again.
    unsafe { bytes_of(text) }.map_or_else(String::new, |text| String::from_utf8_lossy(text).into())
}

fn c_path(path: &Path) -> Result<CString, String> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| "a path with a NUL byte".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_heard_through_any_noise() {
        let say = |text: &str| {
            let text = CString::new(text).unwrap();
            on_message(MSG_WARN, text.as_ptr(), text.as_ptr(), std::ptr::null_mut());
        };
        take_messages();
        for _ in 0..3 * MAX_MESSAGES {
            say("odd object");
        }
        say("Can't create temporary directory for scan: /x.");
        say("odd object");
        let kept = take_messages();
        assert_eq!(kept.len(), MAX_MESSAGES + 1);
        assert!(kept.iter().any(|message| is_complaint(&message.text)));
    }
}
