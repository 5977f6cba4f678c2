-- Cancel a queued job at once; ask the holder of a running one.
-- ARGV: id, how long the holder has to answer in ms
local state = get('state')
if state == '' then return 'missing' end
if state == 'queued' then
  set('cancel_requested', '1')
  finish(ARGV[1], now_ms(), 'cancelled', '', '')
  return 'cancelled'
end
if state == 'running' and get('cancel_requested') ~= '1' then
  -- A holder that lives stops at its next renewal, which does not lengthen the lease any more.
  -- Nobody waits a whole lease for one that is dead.
  local expiry = math.min(tonumber(get('lease_until_ms')), now_ms() + tonumber(ARGV[2]))
  set('cancel_requested', '1', 'lease_until_ms', string.format('%.0f', expiry))
  redis.call('ZADD', open, expiry, ARGV[1])
  bump('cancel_requested')
end
return state
