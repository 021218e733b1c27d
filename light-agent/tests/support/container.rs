//! A shell in mounts of its own, as a container has.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

pub struct Container {
    shell: Child,
    answers: BufReader<ChildStdout>,
}

impl Container {
    /// Below the process and mount namespaces of this process.
    pub fn start(of: i32) -> Self {
        let mut command = Command::new("nsenter");
        command.args(["--pid", "--mount", "-t", &of.to_string(), "unshare"]);
        command.args(["--mount", "sh"]);
        let mut shell = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(shell.stdout.take().unwrap());
        Self { shell, answers }
    }

    /// Runs a line, and gives the line that it prints.
    pub fn say(&mut self, line: &str) -> String {
        let mut stdin = self.shell.stdin.as_ref().unwrap();
        writeln!(stdin, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    /// Runs a script that must go well.
    pub fn run(&mut self, script: &str) {
        let said = self.say(&format!(
            "( set -e; {script} ) >&2 && echo done || echo failed"
        ));
        assert_eq!(said, "done", "{script}");
    }

    /// Whether a file can be read.
    pub fn reads(&mut self, path: &str) -> bool {
        let said = self.say(&format!(
            "cat '{path}' >/dev/null 2>&1 && echo read || echo denied"
        ));
        said == "read"
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let mut rest = String::new();
        let _ = self.answers.read_to_string(&mut rest);
        let _ = self.shell.wait();
    }
}
