//! A resource of a node that its jobs share equally ("processor sharing").

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A node's processors or network.
#[derive(Default)]
pub struct Station {
    /// The work that it can do per second, in total and at most for one job.
    capacity: f64,
    each: f64,
    jobs: BinaryHeap<Reverse<Job>>,
    /// The work done for each job since the station was last idle, as if the job had been there all the time. All jobs
    /// get the same, so a job ends when this has grown by the job's work.
    share: f64,
    /// The work done in total.
    done: f64,
    /// When `share` and `done` were last updated.
    at: f64,
    /// Changes when a job starts or ends.
    pub version: u64,
}

struct Job {
    /// The share at which it ends.
    end: f64,
    call: usize,
}

impl Station {
    pub fn new(capacity: f64, each: f64) -> Self {
        Station {
            capacity,
            each,
            ..Station::default()
        }
    }

    /// What each job gets per second.
    fn rate(&self) -> f64 {
        self.each.min(self.capacity / self.jobs.len() as f64)
    }

    /// What it has done until now.
    pub fn done(&mut self, now: f64) -> f64 {
        if !self.jobs.is_empty() {
            let each = self.rate() * (now - self.at);
            self.share += each;
            self.done += each * self.jobs.len() as f64;
        }
        self.at = now;
        self.done
    }

    /// Starts a job for a call.
    pub fn start(&mut self, now: f64, work: f64, call: usize) {
        self.done(now);
        let end = self.share + work;
        self.jobs.push(Reverse(Job { end, call }));
        self.version += 1;
    }

    /// When the next job ends if no other one starts.
    pub fn next(&self) -> Option<f64> {
        let Reverse(first) = self.jobs.peek()?;
        Some(self.at + (first.end - self.share).max(0.0) / self.rate())
    }

    /// Ends the next job, at the time that [`Station::next`] has returned, and all jobs that end at the same time.
    /// Returns their calls.
    pub fn completed(&mut self, now: f64) -> Vec<usize> {
        self.done(now);
        let first = self.jobs.pop();
        let mut calls: Vec<usize> = first.iter().map(|Reverse(job)| job.call).collect();
        while let Some(Reverse(job)) = self.jobs.peek()
            && job.end <= self.share
        {
            calls.extend(self.jobs.pop().map(|Reverse(job)| job.call));
        }
        if self.jobs.is_empty() {
            self.share = 0.0;
        }
        self.version += 1;
        calls
    }
}

impl Ord for Job {
    fn cmp(&self, other: &Self) -> Ordering {
        self.end
            .total_cmp(&other.end)
            .then(self.call.cmp(&other.call))
    }
}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Job {}
