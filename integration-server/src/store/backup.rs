//! A backup: one file, whole or refused.
//!
//! ```text
//!   header, one line of JSON ─► frame 0: the CA's files ─► frames of rows ─► last frame: their number
//! ```
//!
//! Owns the file's form and the order of a restore; the rows are `store/sql/copy.rs`'s.
//! Each frame is sealed under a key derived from the master key, with the header, its
//! number and whether it is the last: frames cannot be changed, left out, taken from
//! another backup, or added. Values that are sealed in the store are sealed in there
//! once more. The master key is not in it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::seal::master::{BadMaster, backup_key};
use super::seal::{Key, Seals};
use super::{Change, Opening, Place, Result, StoreError};
use crate::audit::{Actor, Entry};

/// The schema that this version writes and reads.
pub const SCHEMA: i64 = 11;
/// Longest header that is read, in bytes.
const MAX_HEADER_BYTES: u64 = 4096;
/// Longest frame that is read, in bytes: 500 rows of reports fit many times.
const MAX_FRAME_BYTES: u32 = 256 * 1024 * 1024;
/// Largest file of the CA that is taken along, in bytes.
const MAX_CA_FILE_BYTES: u64 = 64 * 1024;
/// The files of the certificate authority.
const CA_FILES: [&str; 4] = ["root.key", "root.pem", "issuing.key", "issuing.pem"];
const FORM: &str = "palisade-server backup 1";

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// NULL.
    Null,
    /// A number.
    Number(i64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// Takes rows.
pub trait RowSink: Send {
    /// Some rows of the table with this number.
    ///
    /// # Errors
    /// [`StoreError`]: they cannot be written.
    fn rows(&mut self, table: usize, rows: Vec<Vec<Value>>) -> Result<()>;
}

/// Gives rows.
pub trait RowSource: Send {
    /// The next ones; none after the last, which was found to be the last.
    ///
    /// # Errors
    /// [`StoreError`]: the backup is not whole.
    fn rows(&mut self) -> Result<Option<(usize, Vec<Vec<Value>>)>>;
    /// All rows are in; what has to be there before they are committed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn before_commit(&mut self) -> Result<()>;
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    form: String,
    id: Uuid,
    schema: i64,
    made_ms: u64,
    version: String,
}

#[derive(Serialize, Deserialize)]
enum Frame {
    Ca(Vec<(String, String)>),
    Rows(usize, Vec<Vec<Option<String>>>),
    End(u64),
}

/// Writes a backup of a store, which may be in use, and of its CA.
///
/// # Errors
/// [`StoreError`]; the file is then not there.
pub async fn write(place: &Place, ca: &Path, file: &Path, now_ms: u64) -> Result<u64> {
    let store = place.open_to(Opening::Look).await?;
    // After that: it opens the store's keys, or the store would not be open.
    let in_force = || place.master.read().map(|(key, _)| key);
    let master = in_force()?.ok_or_else(|| BadMaster::Missing(place.master.path()))?;
    let header = Header {
        form: FORM.to_owned(),
        id: Uuid::new_v4(),
        schema: SCHEMA,
        made_ms: now_ms,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let header = serde_json::to_string(&header).map_err(|error| bad(file, error))?;
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    if file.exists() {
        return Err(bad(file, "it is there already; a backup is a new file"));
    }
    let out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => bad(
                &partial,
                "another backup to it is under way, or was ended before its end: then remove it",
            ),
            _ => bad(&partial, error),
        })?;
    let mut writer = Writer {
        file: file.to_owned(),
        out: BufWriter::new(out),
        frames: Frames::new(&master, header.clone()),
        rows: 0,
    };
    let written = async {
        writer.line(&header)?;
        let files = ca_files(ca)?;
        if files.len() != CA_FILES.len() {
            return Err(bad(
                ca,
                "the certificate authority's files are not all there; run it where the server does, with its settings",
            ));
        }
        writer.frame(&Frame::Ca(files), false)?;
        store.export(&mut writer).await?;
        let end = Frame::End(writer.rows);
        writer.frame(&end, true)?;
        writer.out.flush().map_err(|error| bad(file, error))?;
        let synced = writer.out.get_ref().sync_all();
        synced.map_err(|error| bad(file, error))?;
        match in_force()?.is_some_and(|now| now.bytes() == master.bytes()) {
            true => Ok(()),
            false => Err(bad(
                file,
                "the master key was changed meanwhile; make the backup again",
            )),
        }
    }
    .await;
    store.close().await;
    // A name that somebody else has given meanwhile is not taken away.
    let named = || std::fs::hard_link(&partial, file).map_err(|error| bad(file, error));
    let done = written.and_then(|()| named());
    // What is not whole is no backup, and what is has its name.
    let _ = std::fs::remove_file(&partial);
    done?;
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(|error| bad(file, error))?;
    Ok(writer.rows)
}

/// Restores a backup into an empty store, and the CA into a folder that has none. Sessions
/// are not restored, and the audit log has an entry of it.
///
/// # Errors
/// [`StoreError`]; the store is then as it was.
pub async fn restore(place: &Place, ca: &Path, file: &Path, now_ms: u64) -> Result<u64> {
    let master = place.master.read()?.0;
    let master = master.ok_or_else(|| BadMaster::Missing(place.master.path()))?;
    let input = File::open(file).map_err(|error| bad(file, error))?;
    let mut input = BufReader::new(input);
    let mut line = String::new();
    (&mut input)
        .take(MAX_HEADER_BYTES)
        .read_line(&mut line)
        .map_err(|error| bad(file, error))?;
    let header: Header = serde_json::from_str(&line).map_err(|_| bad(file, "it is no backup"))?;
    if header.form != FORM || header.schema != SCHEMA {
        return Err(bad(
            file,
            format!(
                "it is of schema {}, written by version {}, and this version has schema {SCHEMA}; restore it with that version",
                header.schema, header.version
            ),
        ));
    }
    let mut reader = Reader {
        file: file.to_owned(),
        input,
        frames: Frames::new(&master, line.trim_end().to_owned()),
        ca: ca.to_owned(),
        files: Vec::new(),
        rows: 0,
    };
    match reader.frame()? {
        (Frame::Ca(files), false) => reader.files = files,
        _ => return Err(bad(file, "its frames are in no order")),
    }
    let store = place.open_to(Opening::Alone).await?;
    let done = store.import(&mut reader, &master).await;
    store.close().await;
    done?;
    let store = place.open_to(Opening::Look).await?;
    let entry = Entry::done(Actor::local(), "store.restore", file.display(), now_ms)
        .after(format!("{} rows", reader.rows));
    let noted = store.change(Change::Nothing, Some(&entry), now_ms).await;
    store.close().await;
    noted.map(|_| reader.rows)
}

/// The key of a backup's frames, and the place of the next one.
struct Frames {
    seals: Seals,
    header: String,
    number: u64,
}

impl Frames {
    fn new(master: &Key, header: String) -> Self {
        let key = backup_key(master);
        Self {
            seals: Seals::new([(0, key.clone())].into(), key),
            header,
            number: 0,
        }
    }

    /// What is authenticated with a frame.
    fn place(&self, last: bool) -> String {
        format!("{}/{}/{last}", self.header, self.number)
    }
}

struct Writer {
    file: PathBuf,
    out: BufWriter<File>,
    frames: Frames,
    rows: u64,
}

impl Writer {
    fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.out, "{line}").map_err(|error| bad(&self.file, error))
    }

    fn frame(&mut self, frame: &Frame, last: bool) -> Result<()> {
        let text = serde_json::to_vec(frame).map_err(|error| bad(&self.file, error))?;
        let place = self.frames.place(last);
        let sealed = self.frames.seals.seat("backup", place).seal("frame", &text);
        let sealed = sealed.map_err(|error| bad(&self.file, error))?;
        self.frames.number += 1;
        let length = u32::try_from(sealed.len())
            .ok()
            .filter(|length| *length <= MAX_FRAME_BYTES)
            .ok_or_else(|| bad(&self.file, "a frame is too long"))?;
        self.out
            .write_all(&length.to_le_bytes())
            .and_then(|()| self.out.write_all(&[u8::from(last)]))
            .and_then(|()| self.out.write_all(&sealed))
            .map_err(|error| bad(&self.file, error))
    }
}

impl RowSink for Writer {
    fn rows(&mut self, table: usize, rows: Vec<Vec<Value>>) -> Result<()> {
        self.rows += rows.len() as u64;
        let rows = rows
            .into_iter()
            .map(|row| row.into_iter().map(text_of).collect())
            .collect();
        self.frame(&Frame::Rows(table, rows), false)
    }
}

struct Reader {
    file: PathBuf,
    input: BufReader<File>,
    frames: Frames,
    ca: PathBuf,
    files: Vec<(String, String)>,
    rows: u64,
}

impl Reader {
    fn frame(&mut self) -> Result<(Frame, bool)> {
        let cut = |_| bad(&self.file, "it ends too early: it is not whole");
        let mut head = [0; 5];
        self.input.read_exact(&mut head).map_err(cut)?;
        let [a, b, c, d, last] = head;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length > MAX_FRAME_BYTES {
            return Err(bad(&self.file, "a frame is too long"));
        }
        let mut sealed = Vec::new();
        (&mut self.input)
            .take(u64::from(length))
            .read_to_end(&mut sealed)
            .map_err(|error| bad(&self.file, error))?;
        let last = last == 1;
        let place = self.frames.place(last);
        let opened = self
            .frames
            .seals
            .seat("backup", place)
            .open("frame", &sealed);
        let opened = opened.map_err(|_| {
            bad(
                &self.file,
                "it was changed, or was made with another master key; put the master key of its server in place",
            )
        })?;
        self.frames.number += 1;
        let frame = serde_json::from_slice(&opened).map_err(|error| bad(&self.file, error))?;
        Ok((frame, last))
    }
}

impl RowSource for Reader {
    fn rows(&mut self) -> Result<Option<(usize, Vec<Vec<Value>>)>> {
        match self.frame()? {
            (Frame::Rows(table, rows), false) => {
                self.rows += rows.len() as u64;
                let rows: Option<Vec<Vec<Value>>> = rows
                    .into_iter()
                    .map(|row| row.into_iter().map(value_of).collect())
                    .collect();
                let rows = rows.ok_or_else(|| bad(&self.file, "a value is none"))?;
                Ok(Some((table, rows)))
            }
            (Frame::End(rows), true) if rows == self.rows => {
                let more = self.input.fill_buf();
                match more.map_err(|error| bad(&self.file, error))?.is_empty() {
                    true => Ok(None),
                    false => Err(bad(&self.file, "something follows its end")),
                }
            }
            _ => Err(bad(&self.file, "its frames are in no order")),
        }
    }

    /// A CA that is there already must be the same one.
    fn before_commit(&mut self) -> Result<()> {
        let there = ca_files(&self.ca)?;
        if !there.is_empty() {
            return match there == self.files {
                true => Ok(()),
                false => Err(bad(
                    &self.ca,
                    "another certificate authority is there; move it away",
                )),
            };
        }
        for (name, text) in &self.files {
            if !CA_FILES.contains(&name.as_str()) {
                return Err(bad(&self.file, "it has a file that is none of the CA's"));
            }
            let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
            let path = self.ca.join(name);
            palisade_protocol::identity::write_atomic(&path, text.as_bytes(), mode)
                .map_err(|error| bad(&path, error))?;
        }
        Ok(())
    }
}

fn ca_files(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for name in CA_FILES {
        let path = folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(bad(&path, error)),
        };
        let mut text = String::new();
        file.take(MAX_CA_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| bad(&path, error))?;
        files.push((name.to_owned(), text));
    }
    Ok(files)
}

/// A value as a frame holds it: its kind is its first letter.
fn text_of(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Number(number) => Some(format!("n{number}")),
        Value::Text(text) => Some(format!("t{text}")),
        Value::Bytes(bytes) => Some(format!("b{}", STANDARD.encode(bytes))),
    }
}

fn value_of(text: Option<String>) -> Option<Value> {
    let Some(text) = text else {
        return Some(Value::Null);
    };
    let rest = text.get(1..)?;
    match text.as_bytes().first()? {
        b'n' => rest.parse().ok().map(Value::Number),
        b't' => Some(Value::Text(rest.to_owned())),
        b'b' => STANDARD.decode(rest).ok().map(Value::Bytes),
        _ => None,
    }
}

fn bad(file: &Path, detail: impl ToString) -> StoreError {
    StoreError::Backup {
        file: file.to_owned(),
        detail: detail.to_string(),
    }
}
