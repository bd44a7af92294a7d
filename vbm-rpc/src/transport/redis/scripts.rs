//! Every script of the bus. Each runs once a heartbeat or once a life, never once a message; [`COMPLETE_HELD`] once a
//! batch, for what took long.

/// Renews presence unless another process took the path later; what is known to be forged is written over. What stands there
/// may also be an earlier process: a server that was promoted has forgotten who came last.
/// KEYS: presence. ARGV: value, token, ttl ms, the forgery or ''. Returns what the other wrote, or ''.
pub(super) const RENEW: &str = r"
local function born(token)
  if type(token) ~= 'string' then return end
  local seconds, micros = string.match(token, '^(%d+)%.(%d+)%-%d+$')
  return tonumber(seconds), tonumber(micros)
end
local function earlier(one, other)
  local s1, u1 = born(one)
  local s2, u2 = born(other)
  if not (s1 and s2) then return false end
  return s1 < s2 or (s1 == s2 and u1 < u2)
end
local now = redis.call('GET', KEYS[1])
if now and now ~= ARGV[4] then
  local ok, member = pcall(cjson.decode, now)
  if ok and type(member) == 'table' and member.token ~= ARGV[2] and not earlier(member.token, ARGV[2]) then return now end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ''
";

/// Takes a member off presence if it is still its own, and with it its queues where they are empty: who still believes it
/// to be there is refused.
/// KEYS: presence, stream, control stream. ARGV: token. Returns 1 when it was.
pub(super) const RETIRE: &str = r"
local now = redis.call('GET', KEYS[1])
if now then
  local ok, member = pcall(cjson.decode, now)
  if ok and type(member) == 'table' and member.token ~= ARGV[1] then return 0 end
end
redis.call('DEL', KEYS[1])
if redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[2]) end
if redis.call('XLEN', KEYS[3]) == 0 then redis.call('DEL', KEYS[3]) end
return 1
";

/// Forgets the queue of a node when it is empty and nobody serves it.
/// Otherwise notes that its process ended in peace: what is left in the queue has killed nobody.
/// KEYS: presence, stream, counts, control stream. ARGV: ttl ms of the note.
pub(super) const FORGET_NODE: &str = r"
if redis.call('EXISTS', KEYS[1]) ~= 0 then return 1 end
if redis.call('XLEN', KEYS[4]) == 0 then redis.call('DEL', KEYS[4]) end
if redis.call('XLEN', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[2], KEYS[3])
else
  redis.call('HSET', KEYS[3], 'peace', 1)
  redis.call('PEXPIRE', KEYS[3], ARGV[1])
end
return 1
";

/// Says that these entries are still worked on: nobody takes them over for another lease.
/// KEYS: stream. ARGV: group, consumer, entries. Returns those that are another one's by now.
pub(super) const RENEW_HELD: &str = r"
local lost = {}
for i = 3, #ARGV do
  local mine = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #mine == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
";

/// Completes entries that may have been taken over: only those that are still this consumer's.
/// KEYS: stream. ARGV: group, consumer, entries. Returns how many were not.
pub(super) const COMPLETE_HELD: &str = r"
local lost = 0
for i = 3, #ARGV do
  local mine = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #mine == 1 then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[1], ARGV[i])
  else
    lost = lost + 1
  end
end
return lost
";

/// Puts a dead letter back into its queue, if that is there and the letter still is.
/// KEYS: dead letters, stream. ARGV: letter, then the fields of the entry. Returns 1, 0 for no queue, -1 for no letter.
pub(super) const REPLAY: &str = r"
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return -1 end
local put = redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', unpack(ARGV, 2))
if not put then return 0 end
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
";

/// Forgets an anycast queue when it is empty and nobody serves it; leaves the group otherwise.
/// KEYS: liveness, stream, counts, rescuer. ARGV: now in ms, group, consumer.
pub(super) const FORGET_ANY: &str = r"
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
local gone = redis.call('EXISTS', KEYS[2]) == 0
if gone or (redis.call('XLEN', KEYS[2]) == 0 and redis.call('ZCARD', KEYS[1]) == 0) then
  redis.call('DEL', KEYS[2], KEYS[4])
  redis.call('DEL', KEYS[3])
  return 1
end
local held = redis.pcall('XPENDING', KEYS[2], ARGV[2], '-', '+', 1, ARGV[3])
if type(held) == 'table' and not held.err and #held == 0 then
  redis.pcall('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], ARGV[3])
end
return 1
";

/// Forgets the broadcasts of a shard when nobody is left there.
/// KEYS: liveness, stream. ARGV: now in ms.
pub(super) const FORGET_BROADCAST: &str = r"
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if redis.call('ZCARD', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
return 1
";

/// Everything about one lease. Its value is `epoch holder`; a value that is none counts as held by nobody.
/// KEYS: lease, epoch. ARGV: word, holder, ttl ms, epoch or floor, blank allowed (0 or 1).
/// Returns the words that `lease::read` knows.
pub(super) const LEASE: &str = r"
local word, me, ttl, given = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local value = redis.call('GET', KEYS[1])
local epoch, holder
if value then epoch, holder = string.match(value, '^(%d+) (.+)$') end
local kept = redis.call('GET', KEYS[2])
local last = tonumber(kept or '0') or 0
local function hold(number)
  local text = string.format('%.0f', number)
  redis.call('SET', KEYS[2], text)
  redis.call('SET', KEYS[1], text .. ' ' .. me, 'PX', ttl)
  return {'mine', text}
end
if holder and holder == me then
  if word == 'take' then
    redis.call('PEXPIRE', KEYS[1], ttl)
    return {'mine', epoch}
  end
  if word == 'raise' then return hold(math.max(last, given, tonumber(epoch)) + 1) end
  if word == 'renew' and tonumber(epoch) == given then
    redis.call('PEXPIRE', KEYS[1], ttl)
    if last < given then redis.call('SET', KEYS[2], epoch) end
    return {'mine', epoch}
  end
  if word == 'release' then
    redis.call('DEL', KEYS[1])
    return {'free', epoch}
  end
end
if holder then
  return {'held', epoch, holder, string.format('%.0f', math.max(redis.call('PTTL', KEYS[1]), 0))}
end
if word == 'take' and (kept or ARGV[5] == '1') then return hold(math.max(last, given) + 1) end
if not kept then return {'blank'} end
return {'free', string.format('%.0f', last)}
";

/// Ends a ticket whose end is known to be forged, unless another end stands there by now.
/// KEYS: ticket. ARGV: field of the end, the forgery, the end, ttl ms. Returns the end that it has.
pub(super) const MEND_TICKET: &str = r"
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return redis.call('HGET', KEYS[1], ARGV[1])
";

/// Forgets a consumer that holds nothing.
/// KEYS: stream. ARGV: group, consumer.
pub(super) const FORGET_CONSUMER: &str = r"
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return 1
";
