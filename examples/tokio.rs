//! A server on tokio whose worker threads give up what is held for them when they find nothing to do.
//!
//! ```text
//! cargo run --release --example tokio
//! ```
//!
//! The program starts itself twice as a server, with and without `on_thread_park`, has each build a structure for each of
//! some thousand requests, and asks how much memory it holds when the last one is over.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use deferfree::DeferFree;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::mpsc;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

const WORKERS: usize = 64;
const CLIENTS: usize = 64;
const REQUESTS_PER_CLIENT: usize = 50;

fn main() -> io::Result<()> {
    match env::args().nth(1).as_deref() {
        None => {
            measure("plain")?;
            measure("rests")
        }
        Some(how) => serve(how == "rests"),
    }
}

fn serve(rests: bool) -> io::Result<()> {
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).enable_io();
    if rests {
        builder.on_thread_park(|| GLOBAL.thread_idle());
    }
    builder.build()?.block_on(async {
        // What is done with a document in the end, and where it is dropped: by another thread than built it.
        let (archive, mut documents) = mpsc::channel::<Document>(WORKERS);
        tokio::spawn(async move { while documents.recv().await.is_some() {} });

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            let archive = archive.clone();
            tokio::spawn(async move {
                let (input, mut output) = stream.into_split();
                let mut lines = tokio::io::BufReader::new(input).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let answer = match line.parse() {
                        Ok(n) => {
                            let document = Document::build(n);
                            let sum = document.sum();
                            if archive.send(document).await.is_err() {
                                return;
                            }
                            sum
                        }
                        Err(_) => resident_mib(),
                    };
                    if output.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// Pages of 4 to 250 KiB.
struct Document(Vec<Vec<u8>>);

impl Document {
    fn build(n: usize) -> Document {
        let bytes = |i: usize| 4000 + (n * 7919 + i * 104_729) % 250_000;
        Document((0..40).map(|i| vec![n as u8; bytes(i)]).collect())
    }

    fn sum(&self) -> usize {
        self.0.iter().flatten().map(|&byte| usize::from(byte)).sum()
    }
}

fn resident_mib() -> usize {
    (GLOBAL.stats().resident_bytes.unwrap_or(0) >> 20) as usize
}

/// A server, for as long as it is asked.
fn measure(how: &str) -> io::Result<()> {
    let mut server = Command::new(env::current_exe()?).arg(how).stdout(Stdio::piped()).spawn()?;
    let asked = ask_server(how, server.stdout.take().expect("it is piped"));
    server.kill()?;
    server.wait()?;
    asked
}

/// The client's side.
fn ask_server(how: &str, output: ChildStdout) -> io::Result<()> {
    let mut address = String::new();
    BufReader::new(output).read_line(&mut address)?;
    let address = address.trim();

    let ask = |stream: &TcpStream, question: &str| -> io::Result<String> {
        (&*stream).write_all(format!("{question}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let stream = TcpStream::connect(address)?;
                    (0..REQUESTS_PER_CLIENT)
                        .try_for_each(|i| ask(&stream, &(client + i).to_string()).map(drop))
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("it does not panic"))
    })?;

    let stream = TcpStream::connect(address)?;
    let at_once = ask(&stream, "resident")?;
    thread::sleep(Duration::from_secs(3));
    println!(
        "{how}: {at_once} MiB after the last request, {} MiB three seconds later",
        ask(&stream, "resident")?
    );
    Ok(())
}
