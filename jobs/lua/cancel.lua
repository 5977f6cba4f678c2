-- Cancel a queued job at once; ask the holder of a running one.
-- ARGV: id
local state = get('state')
if state == '' then return 'missing' end
if state == 'queued' then
  set('cancel_requested', '1')
  finish(ARGV[1], now_ms(), 'cancelled', '', '')
  return 'cancelled'
end
if state == 'running' and get('cancel_requested') ~= '1' then
  set('cancel_requested', '1')
  bump('cancel_requested')
end
return state
