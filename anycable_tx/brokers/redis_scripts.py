"""The Lua scripts of the Redis broker for streams, one for each operation.

All keys of a script share a hash tag. No script reads the server's clock: times are passed in, in milliseconds.
``master_replid`` names the history of writes that a master stands for: it changes when a server is started and when a
replica becomes the master, so what was written under another one may lack its end. It is read where it is needed, in
the script, because a connection may have come back to another server since the script was asked for.
"""

from __future__ import annotations

from anycable_tx.redis.api import Script

__all__ = ["ANNOUNCE", "MARK", "PUBLISH", "RENEW"]

_GENERATION = """
local function generation()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
end
"""

# KEYS the marker. ARGV 1 now, 2 the wipe the node knows ('' none), 3 a new name.
# The marker: e the epoch that streams begin with, w a name for the last loss of everything, g generation, c since
# when there is a marker, l when data was lost last (-1: never), v evicted keys. Returns e, w, c, l.
MARK = Script(
    _GENERATION
    + """
local now, known, fresh = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local m = redis.call('HMGET', KEYS[1], 'e', 'w', 'g', 'c', 'l', 'v')
local e, w, g, c, l, v = m[1], m[2], m[3], tonumber(m[4]), tonumber(m[5]), tonumber(m[6])
local here = generation()
local evicted = tonumber(string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)')) or 0
if not (e and w and g and c and l and v) then
  e, w, g, c, l, v = fresh, fresh, here, now, -1, evicted
elseif g ~= here then
  e, w, g, l, v = fresh, fresh, here, now, evicted
elseif evicted > v then
  -- What began before may be gone: streams that begin from now on are told apart from it.
  e, l, v = fresh, now, evicted
end
if known ~= '' and known ~= w and l < c then
  l = c  -- this node has seen another marker, so there were data before this one
end
redis.call('HSET', KEYS[1], 'e', e, 'w', w, 'g', g, 'c', string.format('%.0f', c), 'l', string.format('%.0f', l),
  'v', string.format('%.0f', v))
return {e, w, string.format('%.0f', c), string.format('%.0f', l)}
"""
)

# The record of a stream: o newest offset, b the offset its epoch began after, e epoch, g generation, t time of the
# newest message, or of the newest that may be gone (-1: none). begin() makes it usable, or answers false: that takes
# an epoch.
_BEGIN = (
    _GENERATION
    + """
local function begin(now, epoch, fresh, floor)
  local m = redis.call('HMGET', KEYS[1], 'o', 'b', 'e', 'g', 't')
  local here = generation()
  if m[1] and m[2] and m[3] and m[5] and m[4] == here then
    return m[1], m[2], m[3], m[5]
  end
  if epoch == '' then
    return false
  end
  -- Nothing in the log can be trusted to be followed by what comes now. Where there were data, or still are, the
  -- epoch has to be another one.
  local lost = redis.call('DEL', KEYS[2]) == 1
  if lost or (m[4] and m[4] ~= here) then
    floor = string.format('%.0f', now)
  end
  if lost or m[3] == epoch then
    epoch = fresh
  end
  local base = now * 1000
  if m[1] and tonumber(m[1]) > base then
    base = tonumber(m[1])
  end
  base = string.format('%.0f', base)
  redis.call('HSET', KEYS[1], 'o', base, 'b', base, 'e', epoch, 'g', here, 't', floor)
  return base, base, epoch, floor
end
"""
)

# KEYS record, log[, id]. ARGV 1 now, 2 opening, 3 body, 4 channel, 5 limit, 6 how long the log lives, 7 and the
# record, 8 until when the id counts, 9 and for how long it lives, 10 epoch ('' none), 11 another one, 12 floor.
# Returns 'stored' or 'duplicate', offset, epoch; 'begin' when the stream has to begin and no epoch was given.
PUBLISH = Script(
    _BEGIN
    + """
local now = tonumber(ARGV[1])
if KEYS[3] then
  local seen = redis.call('GET', KEYS[3])
  if seen then
    local till, offset, epoch = string.match(seen, '^(%d+) (%d+) (.*)$')
    if tonumber(till) > now then
      redis.call('PEXPIRE', KEYS[1], ARGV[7])
      return {'duplicate', offset, epoch}
    end
  end
end
local o, b, e, t = begin(now, ARGV[10], ARGV[11], ARGV[12])
if not o then
  return {'begin'}
end
local n = string.format('%.0f', tonumber(o) + 1)
local time = ARGV[1]
if tonumber(t) > now then
  time = t
end
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[5], n .. '-0', 'd', ARGV[3], 't', time, 'z', t)
redis.call('HSET', KEYS[1], 'o', n, 't', time)
redis.call('PEXPIRE', KEYS[2], ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
if KEYS[3] then
  redis.call('SET', KEYS[3], ARGV[8] .. ' ' .. n .. ' ' .. e, 'PX', ARGV[9])
end
if o == b then
  o = '0'
end
redis.call('PUBLISH', ARGV[4], ARGV[2] .. ARGV[3] .. ',"offset":' .. n .. ',"epoch":"' .. e .. '","prev":' .. o
  .. ',"time":' .. time .. '}')
return {'stored', n, e}
"""
)

# KEYS record, log. ARGV 1 now, 2 epoch, 3 another one, 4 floor, 5 how long the record lives.
# A stream whose record is of another generation begins anew.
RENEW = Script(
    _BEGIN
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then
  begin(tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
"""
)

# KEYS id. ARGV 1 now, 2 channel, 3 message, 4 until when the id counts, 5 and for how long it lives.
# A message that is not stored. Returns 0, or 1 for a duplicate.
ANNOUNCE = Script(
    """
local seen = redis.call('GET', KEYS[1])
if seen and tonumber(string.match(seen, '^%d+')) > tonumber(ARGV[1]) then
  return 1
end
redis.call('SET', KEYS[1], ARGV[4] .. ' 0 ', 'PX', ARGV[5])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 0
"""
)
