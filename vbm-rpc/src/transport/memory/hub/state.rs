//! What happens to the state, under its lock: sending, putting, giving, taking over.

use super::*;

impl State {
    pub(super) fn present(&mut self, seat: &Seat) -> Option<&mut Present> {
        let present = self.nodes.get_mut(&seat.path)?.present.as_mut()?;
        (present.seat.serial == seat.serial).then_some(present)
    }

    pub(super) fn wake_all(&self) {
        for present in self.nodes.values().filter_map(|node| node.present.as_ref()) {
            present.seat.requests.notify_one();
            present.seat.urgent.notify_one();
            present.seat.replies.notify_one();
        }
    }

    pub(super) fn completed(&mut self, seat: &Seat, serial: u64) {
        if self.trouble.is_mute(&seat.path)
            && let Some(present) = self.present(seat)
        {
            present.said.push_back(Said::Completed { serial });
        } else if let Some(node) = self.nodes.get_mut(&seat.path)
            && node.over(serial, Instant::now())
        {
            seat.requests.notify_one();
        }
    }

    pub(super) fn send(
        &mut self,
        from: &NodePath,
        to: &Destination,
        frame: &Bytes,
        until: Instant,
        now: Instant,
    ) -> Result<(Sent, Direct), SendError> {
        match to {
            Destination::Inbox { path, boot_id } => {
                let direct = self.reply(from, path, boot_id, frame, now)?;
                Ok((Sent::default(), direct))
            }
            Destination::Route(route) => {
                let left = until.saturating_duration_since(now);
                let frame = envelope::within(frame, left);
                Ok((self.request(from, route, &frame, until, now)?, Direct::new()))
            }
        }
    }

    /// What the dice say about one message: when its copies arrive.
    pub(super) fn copies(&mut self, from: &NodePath, to: &NodePath, frame: &Bytes) -> Vec<Duration> {
        let copies = self.dice.copies();
        let name = || envelope::label(frame);
        match &copies[..] {
            [] => self
                .trouble
                .tell(format_args!("dropped {} {from} -> {to}", name())),
            [first, second] => self.trouble.tell(format_args!(
                "repeated {} {from} -> {to} after {first:?} and {second:?}",
                name()
            )),
            [delay] if !delay.is_zero() => self
                .trouble
                .tell(format_args!("delayed {} {from} -> {to} by {delay:?}", name())),
            _ => {}
        }
        copies
    }

    pub(super) fn reply(
        &mut self,
        from: &NodePath,
        to: &NodePath,
        boot_id: &str,
        frame: &Bytes,
        now: Instant,
    ) -> Result<Direct, SendError> {
        let gone = || SendError::NoRoute("the asker is gone".into());
        let copies = self.copies(from, to, frame);
        let (cut, mute) = (self.trouble.is_cut(from, to), self.trouble.is_mute(to));
        let node = self.nodes.get_mut(to).ok_or_else(gone)?;
        let present = node
            .present
            .as_ref()
            .filter(|p| p.info.boot_id == *boot_id)
            .ok_or_else(gone)?;
        if present.dead_at.is_some() {
            return Ok(Direct::new());
        }
        let mut direct = Direct::new();
        for delay in copies {
            self.next += 1;
            if cut {
                if node.cut_off.len() < QUEUE_MAX_PER_NODE {
                    node.cut_off.push_back(frame.clone());
                }
            } else if delay.is_zero() && !mute {
                direct.push((present.inbound.clone(), frame.clone()));
            } else {
                node.replies.insert((now + delay, self.next), frame.clone());
                present.seat.replies.notify_one();
            }
        }
        Ok(direct)
    }

    pub(super) fn request(
        &mut self,
        from: &NodePath,
        route: &Route,
        frame: &Bytes,
        until: Instant,
        now: Instant,
    ) -> Result<Sent, SendError> {
        let entry = |origin| Entry {
            from: from.clone(),
            frame: frame.clone(),
            since: now,
            until,
            origin,
            given: false,
            deliveries: 0,
        };
        match route {
            Route::Node(path) => {
                let live = |p: &Present| p.live(now);
                if !self
                    .nodes
                    .get(path)
                    .and_then(|node| node.present.as_ref())
                    .is_some_and(live)
                {
                    return Err(SendError::NoRoute(format!("no live process has the path {path}")));
                }
                self.put(path, entry(Origin::Node))?;
                Ok(Sent::default())
            }
            Route::Any { scope, service } => {
                self.put_any(
                    scope,
                    service,
                    entry(Origin::Any(scope.clone(), service.clone())),
                    now,
                )?;
                Ok(Sent::default())
            }
            Route::All { scope, service } => {
                let members = self.serving(scope, service, now);
                if members.is_empty() {
                    return Err(nobody(scope, service));
                }
                for path in &members {
                    self.put(path, entry(Origin::All))?;
                }
                Ok(Sent { members })
            }
        }
    }

    pub(super) fn serving(&self, scope: &NodePath, service: &Service, now: Instant) -> Vec<NodePath> {
        let present = self.nodes.values().filter_map(|node| node.present.as_ref());
        present
            .filter(|p| p.live(now) && p.info.serves(scope, service))
            .map(|p| p.info.path.clone())
            .collect()
    }

    /// To the member with the least to do; in turn among equals.
    pub(super) fn put_any(
        &mut self,
        scope: &NodePath,
        service: &Service,
        entry: Entry,
        now: Instant,
    ) -> Result<(), SendError> {
        let members = self.serving(scope, service, now);
        let kept = |path: &NodePath| self.nodes.get(path).map_or(0, |node| node.kept.len());
        let least = members
            .iter()
            .map(&kept)
            .min()
            .ok_or_else(|| nobody(scope, service))?;
        let idle: Vec<_> = members.iter().filter(|path| kept(path) == least).collect();
        let turn = usize::try_from(self.next).unwrap_or(0) % idle.len();
        let path = idle[turn].clone();
        self.put(&path, entry)
    }

    pub(super) fn put(&mut self, path: &NodePath, entry: Entry) -> Result<(), SendError> {
        if !self.nodes.contains_key(path) {
            return Ok(());
        }
        let copies = self.copies(&entry.from, path, &entry.frame);
        let cut = self.trouble.is_cut(&entry.from, path);
        let Some(node) = self.nodes.get_mut(path) else {
            return Ok(());
        };
        if node.kept.len() >= QUEUE_MAX_PER_NODE {
            return Err(SendError::Overloaded(format!(
                "{QUEUE_MAX_PER_NODE} requests wait for {path}"
            )));
        }
        for delay in copies {
            self.next += 1;
            let copy = Entry {
                from: entry.from.clone(),
                frame: entry.frame.clone(),
                origin: entry.origin.clone(),
                ..entry
            };
            node.kept.insert(self.next, copy);
            node.added += 1;
            if cut {
                node.held_up.insert(self.next);
            } else {
                node.ready(entry.since + delay, self.next);
            }
        }
        if let Some(present) = &node.present {
            present.seat.requests.notify_one();
            present.seat.urgent.notify_one();
        }
        Ok(())
    }

    /// All that is kept for a path may be given to its process again, but for what a partition holds up.
    pub(super) fn make_ready(&mut self, path: &NodePath, now: Instant) {
        let Some(node) = self.nodes.get_mut(path) else {
            return;
        };
        node.held_up.clear();
        let all: Vec<_> = node
            .kept
            .iter()
            .map(|(serial, entry)| {
                let cut = self.trouble.is_cut(&entry.from, path);
                (*serial, entry.since.min(now), cut)
            })
            .collect();
        for (serial, at, cut) in all {
            if cut {
                node.held_up.insert(serial);
            } else {
                node.ready(at, serial);
            }
        }
    }

    /// When somebody's presence runs out next.
    pub(super) fn next_death(&self) -> Option<Instant> {
        let present = self.nodes.values().filter_map(|node| node.present.as_ref());
        let silent = |p: &Present| p.silent.as_ref().filter(|s| !s.given).map(|s| s.until);
        present.flat_map(|p| [p.dead_at, silent(p)]).flatten().min()
    }

    /// What dead members had taken for a service goes to live ones.
    pub(super) fn take_over(&mut self, now: Instant) {
        if self.next_death().is_none_or(|at| now < at) {
            return;
        }
        let dead = |node: &Node| {
            node.present
                .as_ref()
                .and_then(|p| p.dead_at)
                .is_some_and(|at| at <= now)
        };
        let paths: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| dead(node))
            .map(|(path, _)| path.clone())
            .collect();
        for path in paths {
            self.trouble
                .tell(format_args!("the presence of dead {path} has run out"));
            self.vacate(&path, now);
        }
        self.take_from_silent(now);
    }

    /// The member is gone.
    pub(super) fn vacate(&mut self, path: &NodePath, now: Instant) {
        if let Some(node) = self.nodes.get_mut(path) {
            node.present = None;
        }
        self.give_away(path, now);
    }

    /// Keeps what is for this very node, forgets broadcasts, and gives what was for any to who is there.
    pub(super) fn give_away(&mut self, path: &NodePath, now: Instant) {
        let Some(node) = self.nodes.get_mut(path) else {
            return;
        };
        node.forget_ready();
        node.replies.clear();
        node.cut_off.clear();
        let (keep, give): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut node.kept)
            .into_iter()
            .partition(|(_, entry)| entry.origin == Origin::Node);
        node.kept = keep.into_iter().filter(|(_, entry)| entry.until > now).collect();
        if node.kept.is_empty() && node.present.is_none() {
            self.nodes.remove(path);
        }
        for entry in give.into_values() {
            self.give(entry, now);
        }
    }

    pub(super) fn give(&mut self, entry: Entry, now: Instant) {
        let Origin::Any(scope, service) = entry.origin.clone() else {
            return;
        };
        if entry.until <= now {
            return;
        }
        if self.serving(&scope, &service, now).is_empty() && self.orphans.len() < QUEUE_MAX_PER_NODE {
            self.orphans.push(entry);
        } else if let Err(error) = self.put_any(&scope, &service, entry, now) {
            tracing::warn!(%scope, %service, ?error, "a request was given up: its worker left and others are full");
        }
    }
}
