-- Look after one open job whose check is due.
-- ARGV: id, recheck_ms, max_attempts, failure, failure code, lease_ms, longest pause in ms
-- Times that lie further ahead than a lease or a pause is long are of before the clock was set back.
local id, recheck, max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now, state = now_ms(), get('state')
if state == '' or is_terminal(state) then
  redis.call('ZREM', open, id)
  redis.call('ZREM', queued, id)
  return 'closed'
end
if state == 'queued' then
  local place = tonumber(redis.call('ZSCORE', queued, id))
  if place and place > now + tonumber(ARGV[7]) then redis.call('ZADD', queued, now, id) end
  redis.call('ZADD', open, now + recheck, id)
  return 'queued'
end
local expiry = math.min(tonumber(get('lease_until_ms')), now + tonumber(ARGV[6]))
if expiry > now then
  set('lease_until_ms', string.format('%.0f', expiry))
  redis.call('ZADD', open, expiry, id)
  return 'held'
end
if get('cancel_requested') == '1' then
  finish(id, now, 'cancelled', '', '')
  return 'cancelled'
end
if tonumber(get('attempt')) >= max then
  finish(id, now, 'failed', ARGV[4], ARGV[5])
  return 'failed'
end
requeue(id, now, ARGV[5], now + recheck)
return 'requeued'
